/* Consistent Overhead Byte Stuffing (Cheshire & Baker 1999): no zero inside a frame, so that zero ends it. */
#ifndef RIS_COBS_H
#define RIS_COBS_H

#include <stddef.h>
#include <stdint.h>

/* Most bytes that n become when encoded, the ending zero included. */
#define COBS_MAX(n) ((n) + (n) / 254u + 2u)

#define COBS_BROKEN SIZE_MAX

/* Write n bytes, encoded and ended by a zero, to `out` (COBS_MAX(n) bytes); return how many that are. */
size_t cobs_encode(const uint8_t *data, size_t n, uint8_t *out);

/* Decode n bytes (without the ending zero) in place; return how many are left, COBS_BROKEN where it is no code. */
size_t cobs_decode(uint8_t *data, size_t n);

#endif
