/* Converts a pattern to the bytes that are shifted into the chain of 74HC595.
 *
 * A pattern has `phase_bits` bits per element, element 1 (top left) first, row by row, most significant bit first, and
 * zeros at the end. Its bit j drives output j of the chain: outputs 0 to 7 are QA to QH of the register next to the
 * controller. The byte that is shifted first ends in the farthest register, and its first bit ends at QH.
 */
#ifndef RIS_PLAN_H
#define RIS_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Number of bytes of a pattern of this size, which is also the number of registers. */
uint32_t plan_bytes(uint16_t rows, uint16_t columns, uint8_t phase_bits);

/* Whether the bits beyond the last element are zero. */
bool plan_padded(const uint8_t *pattern, size_t n_bytes, uint32_t n_bits);

/* Write the bytes to be shifted, most significant bit first, in their order. The function is its own inverse. */
void plan_stream(const uint8_t *pattern, size_t n_bytes, uint8_t *stream);

#endif
