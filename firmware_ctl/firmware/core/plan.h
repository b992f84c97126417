/* From a pattern to what is shifted into the chain of 74HC595.
 *
 * Pattern: `phase_bits` bits an element, element 1 (top left) first, by rows, most significant bit first, zeros at
 * the end. Its bit j drives output j of the chain: outputs 0 to 7 are QA to QH of the register next to the
 * controller. What is shifted first ends up farthest away, and of a byte the first bit ends up at QH.
 */
#ifndef RIS_PLAN_H
#define RIS_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that a pattern of this size has; as many registers. */
uint32_t plan_bytes(uint16_t rows, uint16_t columns, uint8_t phase_bits);

/* Whether the bits beyond the last element are zero. */
bool plan_padded(const uint8_t *pattern, size_t n_bytes, uint32_t n_bits);

/* Write the bytes to be shifted, most significant bit first, in their order. The inverse is the same function. */
void plan_stream(const uint8_t *pattern, size_t n_bytes, uint8_t *stream);

#endif
