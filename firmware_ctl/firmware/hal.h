/* What the core needs of the hardware. The core calls these from ris_init, ris_feed and ris_poll only. */
#ifndef RIS_HAL_H
#define RIS_HAL_H

#include <stddef.h>
#include <stdint.h>

struct hal {
    void *self; /* first argument of every function */

    /* Send bytes to the host; returns when they are on their way. */
    void (*send)(void *self, const uint8_t *data, size_t n);

    /* Shift n bytes into the chain, the whole of it, and take what falls out at its end. The outputs stay. */
    void (*exchange)(void *self, const uint8_t *out, uint8_t *in, size_t n);

    /* Have the outputs take over what the chain holds; return the clock at that instant. */
    uint32_t (*latch)(void *self);

    /* Tell what the outputs hold, as the bytes that would have to be shifted for it. */
    void (*outputs)(void *self, uint8_t *in, size_t n);

    /* The clock that time stamps are of, in µs; it wraps. */
    uint32_t (*clock_us)(void *self);

    /* Start again as after power-up. May return where that happens a little later. */
    void (*reset)(void *self);
};

#endif
