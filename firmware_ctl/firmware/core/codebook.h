/* Stored patterns, in two banks: one is used while the other is filled. The banks are exchanged only after a complete
 * upload was checked, so that an upload that fails does not change the codebook in use.
 */
#ifndef RIS_CODEBOOK_H
#define RIS_CODEBOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol.h"

/* An upload that receives nothing for this time is aborted. */
#define CODEBOOK_TIMEOUT_US 2000000u

struct codebook {
    uint8_t *bank[2];
    uint32_t bank_bytes;
    uint32_t n_bits; /* of a pattern */
    uint16_t pattern_bytes;
    uint16_t capacity;

    uint8_t used; /* number of the bank in use */
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

/* Begin an upload; one that was under way is dropped. `crc` is the CRC-32 of all patterns, one after the other. */
enum ris_error codebook_begin(struct codebook *book, uint16_t count, uint32_t crc, uint32_t now_us);

/* Take the bytes that begin at `offset`; bytes must come in order. */
enum ris_error codebook_chunk(struct codebook *book, uint32_t offset, const uint8_t *data, uint16_t n, uint32_t now_us);

/* Check the upload and use it; if it is refused, the upload is over. */
enum ris_error codebook_end(struct codebook *book);

void codebook_abort(struct codebook *book);

/* Abort an upload whose time is over. */
void codebook_poll(struct codebook *book, uint32_t now_us);

/* Return a stored pattern, or NULL if there is none. */
const uint8_t *codebook_pattern(const struct codebook *book, uint16_t index);

#endif
