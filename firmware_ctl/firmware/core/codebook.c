#include "codebook.h"

#include <string.h>

#include "crc.h"
#include "plan.h"

void codebook_init(struct codebook *book, uint8_t *banks, uint32_t bank_bytes, uint16_t pattern_bytes, uint32_t n_bits)
{
    uint32_t capacity = bank_bytes / pattern_bytes;
    memset(book, 0, sizeof *book);
    book->bank[0] = banks;
    book->bank[1] = banks + bank_bytes;
    book->bank_bytes = bank_bytes;
    book->n_bits = n_bits;
    book->pattern_bytes = pattern_bytes;
    book->capacity = capacity > UINT16_MAX ? UINT16_MAX : (uint16_t)capacity;
}

enum ris_error codebook_begin(struct codebook *book, uint16_t count, uint32_t crc, uint32_t now_us)
{
    book->uploading = false;
    if (count == 0 || count > book->capacity)
        return RIS_BAD_COUNT;
    book->uploading = true;
    book->new_count = count;
    book->new_crc = crc;
    book->received = 0;
    book->heard_us = now_us;
    return RIS_OK;
}

enum ris_error codebook_chunk(struct codebook *book, uint32_t offset, const uint8_t *data, uint16_t n, uint32_t now_us)
{
    if (!book->uploading)
        return RIS_NO_UPLOAD;
    uint32_t left = (uint32_t)book->new_count * book->pattern_bytes - book->received;
    if (offset != book->received || n > left)
        return RIS_BAD_OFFSET;
    memcpy(book->bank[1 - book->used] + offset, data, n);
    book->received += n;
    book->heard_us = now_us;
    return RIS_OK;
}

enum ris_error codebook_end(struct codebook *book)
{
    if (!book->uploading)
        return RIS_NO_UPLOAD;
    book->uploading = false;
    const uint8_t *bank = book->bank[1 - book->used];
    uint32_t size = (uint32_t)book->new_count * book->pattern_bytes;
    if (book->received != size)
        return RIS_BAD_OFFSET;
    if (crc32(0, bank, (size_t)size) != book->new_crc)
        return RIS_BAD_CONTENT;
    for (uint32_t at = 0; at < size; at += book->pattern_bytes)
        if (!plan_padded(bank + at, book->pattern_bytes, book->n_bits))
            return RIS_BAD_PATTERN;
    book->used = (uint8_t)(1 - book->used);
    book->count = book->new_count;
    book->crc = book->new_crc;
    return RIS_OK;
}

void codebook_abort(struct codebook *book)
{
    book->uploading = false;
}

void codebook_poll(struct codebook *book, uint32_t now_us)
{
    if (book->uploading && now_us - book->heard_us > CODEBOOK_TIMEOUT_US)
        book->uploading = false;
}

const uint8_t *codebook_pattern(const struct codebook *book, uint16_t index)
{
    return index < book->count ? book->bank[book->used] + (uint32_t)index * book->pattern_bytes : NULL;
}
