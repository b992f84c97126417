/* Consistent Overhead Byte Stuffing (Cheshire & Baker 1999): a frame contains no zero, so that a zero can end it. */
#ifndef RIS_COBS_H
#define RIS_COBS_H

#include <stddef.h>
#include <stdint.h>

/* Largest number of bytes that n bytes have when encoded, with the zero at the end. */
#define COBS_MAX(n) ((n) + (n) / 254u + 2u)

#define COBS_BROKEN SIZE_MAX

/* Write n bytes, encoded and ended by a zero, to `out` (COBS_MAX(n) bytes); return the number of bytes written. */
size_t cobs_encode(const uint8_t *data, size_t n, uint8_t *out);

/* Decode n bytes (without the ending zero) in place; return their number, or COBS_BROKEN if they are not a valid code. */
size_t cobs_decode(uint8_t *data, size_t n);

#endif
