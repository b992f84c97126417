/* Patterns that are to be latched at given times, in the order of these times. */
#ifndef RIS_SCHEDULE_H
#define RIS_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol.h"

#define SCHEDULE_HEAD 4u /* bytes of an entry before its pattern: the time */

struct schedule {
    uint8_t *entries; /* each: time u32 in µs, pattern */
    uint16_t pattern_bytes;
    uint16_t capacity;
    uint16_t count; /* entries of the present schedule, also those that were latched */
    uint16_t next;  /* first one that was not given to the hardware */
};

void schedule_init(struct schedule *schedule, uint8_t *memory, uint32_t bytes, uint16_t pattern_bytes);

/* Drop what was not given to the hardware. */
void schedule_clear(struct schedule *schedule);

/* Add an entry. `index` is its position; 0 begins a new schedule. Refuses a time before `now_us` or the last entry. */
enum ris_error schedule_add(struct schedule *schedule, uint16_t index, uint32_t at_us, const uint8_t *pattern,
                            uint32_t now_us);

/* Return the pattern of the first entry that was not given to the hardware, and store its time; NULL if there is none. */
const uint8_t *schedule_next(const struct schedule *schedule, uint32_t *at_us);

#endif
