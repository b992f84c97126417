/* The hardware functions that the core needs. It calls them from ris_init, ris_feed and ris_poll only. */
#ifndef RIS_HAL_H
#define RIS_HAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hal {
    void *self; /* first argument of every function */

    /* Send bytes to the host; returns when they are on their way. */
    void (*send)(void *self, const uint8_t *data, size_t n);

    /* Shift n bytes, the length of the chain, in, and store the bytes that are shifted out. The outputs do not change. */
    void (*exchange)(void *self, const uint8_t *out, uint8_t *in, size_t n);

    /* Latch the bits of the chain to the outputs; return the clock at that instant. */
    uint32_t (*latch)(void *self);

    /* Return what the outputs hold, as the bytes that would have to be shifted in for it. */
    void (*outputs)(void *self, uint8_t *in, size_t n);

    /* Return the time of the clock that is used for time stamps, in µs; it wraps. */
    uint32_t (*clock_us)(void *self);

    /* Latch the bits of the chain at this time of the clock; false if it has passed. */
    bool (*latch_at)(void *self, uint32_t time_us);

    /* Return whether the chain holds bits that wait for their time; false where the hardware takes several at once. */
    bool (*latch_waits)(void *self);

    /* Forget the time at which to latch. */
    void (*forget_latch)(void *self);

    /* Start again as after power-up. It may return before this happens. */
    void (*reset)(void *self);
};

#endif
