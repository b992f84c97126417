#include "cobs.h"

size_t cobs_encode(const uint8_t *data, size_t n, uint8_t *out)
{
    size_t head = 0; /* index of the byte for the length of the present run */
    size_t end = 1;
    for (size_t i = 0; i < n; i++) {
        if (data[i] != 0)
            out[end++] = data[i];
        /* after a full run no zero is implied, so no further run is needed if the data end with it */
        if (data[i] == 0 || (end - head == 0xFF && i + 1 < n)) {
            out[head] = (uint8_t)(end - head);
            head = end++;
        }
    }
    out[head] = (uint8_t)(end - head);
    out[end++] = 0;
    return end;
}

size_t cobs_decode(uint8_t *data, size_t n)
{
    size_t from = 0;
    size_t to = 0;
    if (n == 0)
        return COBS_BROKEN;
    while (from < n) {
        uint8_t run = data[from++];
        if (run == 0 || (size_t)(run - 1) > n - from)
            return COBS_BROKEN;
        for (uint8_t i = 1; i < run; i++) {
            if (data[from] == 0)
                return COBS_BROKEN;
            data[to++] = data[from++];
        }
        if (run != 0xFF && from < n)
            data[to++] = 0;
    }
    return to;
}
