#include "schedule.h"

#include <stddef.h>
#include <string.h>

void schedule_init(struct schedule *schedule, uint8_t *memory, uint32_t bytes, uint16_t pattern_bytes)
{
    uint32_t capacity = bytes / (SCHEDULE_HEAD + pattern_bytes);
    memset(schedule, 0, sizeof *schedule);
    schedule->entries = memory;
    schedule->pattern_bytes = pattern_bytes;
    schedule->capacity = capacity > UINT16_MAX ? UINT16_MAX : (uint16_t)capacity;
}

void schedule_clear(struct schedule *schedule)
{
    schedule->count = schedule->next = 0;
}

static uint8_t *entry(const struct schedule *schedule, uint16_t index)
{
    return schedule->entries + (uint32_t)index * (SCHEDULE_HEAD + schedule->pattern_bytes);
}

static uint32_t time_of(const struct schedule *schedule, uint16_t index)
{
    uint32_t at_us;
    memcpy(&at_us, entry(schedule, index), sizeof at_us);
    return at_us;
}

/* Return whether a time of the clock is after another one; both are less than half a turn of the clock apart. */
static bool after(uint32_t later_us, uint32_t earlier_us)
{
    uint32_t ahead_us = later_us - earlier_us;
    return ahead_us != 0 && ahead_us < 0x80000000u;
}

enum ris_error schedule_add(struct schedule *schedule, uint16_t index, uint32_t at_us, const uint8_t *pattern,
                            uint32_t now_us)
{
    if (index == 0)
        schedule_clear(schedule);
    if (index != schedule->count)
        return RIS_BAD_OFFSET;
    if (index >= schedule->capacity)
        return RIS_BAD_COUNT;
    if (!after(at_us, now_us) || (index > 0 && after(time_of(schedule, (uint16_t)(index - 1u)), at_us)))
        return RIS_TOO_LATE;
    memcpy(entry(schedule, index), &at_us, sizeof at_us);
    memcpy(entry(schedule, index) + SCHEDULE_HEAD, pattern, schedule->pattern_bytes);
    schedule->count++;
    return RIS_OK;
}

const uint8_t *schedule_next(const struct schedule *schedule, uint32_t *at_us)
{
    if (schedule->next >= schedule->count)
        return NULL;
    *at_us = time_of(schedule, schedule->next);
    return entry(schedule, schedule->next) + SCHEDULE_HEAD;
}
