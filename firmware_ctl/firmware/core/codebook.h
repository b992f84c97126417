/* Stored patterns, in two banks: one is used while the other is filled, and they change places only when a whole
 * upload was checked. Whatever happens to an upload, the codebook in use stays as it is.
 */
#ifndef RIS_CODEBOOK_H
#define RIS_CODEBOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol.h"

/* An upload that stays silent for this long is given up. */
#define CODEBOOK_TIMEOUT_US 2000000u

struct codebook {
    uint8_t *bank[2];
    uint32_t bank_bytes;
    uint32_t n_bits; /* of a pattern */
    uint16_t pattern_bytes;
    uint16_t capacity;

    uint8_t used; /* which bank */
    uint16_t count;
    uint32_t crc;

    bool uploading;
    uint16_t new_count;
    uint32_t new_crc;
    uint32_t received; /* bytes */
    uint32_t heard_us;
};

/* `banks` holds 2·bank_bytes. */
void codebook_init(struct codebook *book, uint8_t *banks, uint32_t bank_bytes, uint16_t pattern_bytes, uint32_t n_bits);

/* Begin, or begin again, with nothing received. `crc` is the CRC-32 of all patterns, one after the other. */
enum ris_error codebook_begin(struct codebook *book, uint16_t count, uint32_t crc, uint32_t now_us);

/* Take bytes that begin at `offset`; they have to come in order. */
enum ris_error codebook_chunk(struct codebook *book, uint32_t offset, const uint8_t *data, uint16_t n, uint32_t now_us);

/* Check and use what was uploaded; where it is refused, the upload is over. */
enum ris_error codebook_end(struct codebook *book);

void codebook_abort(struct codebook *book);

/* Give up an upload that is out of time. */
void codebook_poll(struct codebook *book, uint32_t now_us);

/* Return a stored pattern, NULL where there is none. */
const uint8_t *codebook_pattern(const struct codebook *book, uint16_t index);

#endif
