#include "plan.h"

uint32_t plan_bytes(uint16_t rows, uint16_t columns, uint8_t phase_bits)
{
    return ((uint32_t)rows * columns * phase_bits + 7u) / 8u;
}

bool plan_padded(const uint8_t *pattern, size_t n_bytes, uint32_t n_bits)
{
    uint8_t used = (uint8_t)(n_bits % 8u);
    return used == 0 || (pattern[n_bytes - 1] & (0xFFu >> used)) == 0;
}

static uint8_t mirrored(uint8_t byte)
{
    byte = (uint8_t)((byte & 0xF0u) >> 4 | (byte & 0x0Fu) << 4);
    byte = (uint8_t)((byte & 0xCCu) >> 2 | (byte & 0x33u) << 2);
    return (uint8_t)((byte & 0xAAu) >> 1 | (byte & 0x55u) << 1);
}

void plan_stream(const uint8_t *pattern, size_t n_bytes, uint8_t *stream)
{
    for (size_t i = 0; i < n_bytes; i++)
        stream[i] = mirrored(pattern[n_bytes - 1 - i]);
}
