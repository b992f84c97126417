#include "ris.h"

#include <string.h>

#include "crc.h"
#include "plan.h"

#define WATCHDOG_MAX_MS 1000000u
#define HEAD 4u /* version, sequence number, command or kind */

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (uint16_t)p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *p, uint32_t value)
{
    put16(p, (uint16_t)value);
    put16(p + 2, (uint16_t)(value >> 16));
}

/* ------------------------------------------------------------------------------------------------ replies */

static uint8_t *payload(struct ris *ris)
{
    return ris->reply + HEAD + 1;
}

/* Return whether patterns wait for their times, as far as the core knows. */
static bool waits_for_time(const struct ris *ris)
{
    uint32_t at_us;
    return ris->hal.latch_waits(ris->hal.self) || schedule_next(&ris->schedule, &at_us) != NULL;
}

/* Send the `size` bytes of payload() under a kind. */
static void answer(struct ris *ris, uint8_t kind, size_t size)
{
    uint8_t *frame = ris->reply;
    frame[0] = RIS_PROTOCOL;
    put16(frame + 1, ris->seq);
    frame[3] = kind;
    frame[4] = (uint8_t)((ris->waits ? RIS_FLAG_WAITING : 0) | (ris->book.uploading ? RIS_FLAG_UPLOADING : 0) |
                         (ris->cleared ? RIS_FLAG_CLEARED : 0) |
                         (waits_for_time(ris) ? RIS_FLAG_SCHEDULED : 0));
    put16(frame + HEAD + 1 + size, crc16(CRC16_START, frame, HEAD + 1 + size));
    ris->hal.send(ris->hal.self, ris->tx, cobs_encode(frame, RIS_REPLY_OVERHEAD + size, ris->tx));
}

/* Send the last reply to the present request, and store it, because the request may be repeated. */
static void finish(struct ris *ris, uint8_t kind, size_t size)
{
    ris->last_kind = kind;
    ris->last_size = (uint8_t)size;
    memcpy(ris->last_payload, payload(ris), size);
    answer(ris, kind, size);
}

static void done(struct ris *ris, size_t size)
{
    finish(ris, (uint8_t)(RIS_DONE | ris->command), size);
}

static void refuse(struct ris *ris, enum ris_error error)
{
    payload(ris)[0] = ris->command;
    payload(ris)[1] = (uint8_t)error;
    finish(ris, RIS_ERROR, 2);
}

static void settle(struct ris *ris, enum ris_error error, size_t size)
{
    if (error != RIS_OK)
        refuse(ris, error);
    else
        done(ris, size);
}

/* Refuse a frame that cannot be read. It has no sequence number, and must not change the stored reply. */
static void complain(struct ris *ris, enum ris_error error)
{
    ris->seq = 0;
    payload(ris)[0] = 0;
    payload(ris)[1] = (uint8_t)error;
    answer(ris, RIS_ERROR, 2);
}

/* ------------------------------------------------------------------------------------------------ surface */

/* Shift a pattern in twice. The second time the chain returns the bits of the first; returns whether they are equal. */
static bool shift_in(struct ris *ris, const uint8_t *pattern)
{
    const struct hal *hal = &ris->hal;
    plan_stream(pattern, ris->pattern_bytes, ris->stream);
    hal->exchange(hal->self, ris->stream, ris->returned, ris->pattern_bytes);
    hal->exchange(hal->self, ris->stream, ris->returned, ris->pattern_bytes);
    ris->chain_bad = memcmp(ris->stream, ris->returned, ris->pattern_bytes) != 0;
    return !ris->chain_bad;
}

static bool latch(struct ris *ris, const uint8_t *pattern, uint32_t *time_us)
{
    if (!shift_in(ris, pattern))
        return false;
    *time_us = ris->hal.latch(ris->hal.self);
    return true;
}

/* Drop the schedule. What waits in the chain is not latched; the chain then holds other bits than the outputs. */
static void drop_schedule(struct ris *ris)
{
    ris->chain_bad = ris->chain_bad || ris->hal.latch_waits(ris->hal.self);
    ris->hal.forget_latch(ris->hal.self);
    schedule_clear(&ris->schedule);
}

/* Give the hardware the patterns that it can take. If one comes too late, or the chain does not hold it, none of those
 * behind it is latched either: the host notices it because the outputs do not hold the last one in the end. */
static enum ris_error follow_schedule(struct ris *ris)
{
    uint32_t at_us;
    const uint8_t *pattern;
    while (!ris->hal.latch_waits(ris->hal.self) && (pattern = schedule_next(&ris->schedule, &at_us)) != NULL) {
        enum ris_error error = !shift_in(ris, pattern) ? RIS_BAD_CHAIN : RIS_TOO_LATE;
        if (error == RIS_BAD_CHAIN || !ris->hal.latch_at(ris->hal.self, at_us)) {
            ris->chain_bad = true;
            schedule_clear(&ris->schedule);
            return error;
        }
        ris->schedule.next++;
    }
    return RIS_OK;
}

/* Read the pattern that the outputs hold into `pattern`. */
static void read_outputs(struct ris *ris, uint8_t *pattern)
{
    ris->hal.outputs(ris->hal.self, ris->returned, ris->pattern_bytes);
    plan_stream(ris->returned, ris->pattern_bytes, pattern);
}

/* Apply a pattern; reply with the time of the latch and the CRC-32 of what the outputs hold, not of the request. */
static void apply(struct ris *ris, const uint8_t *pattern)
{
    uint32_t time_us = 0;
    drop_schedule(ris);
    if (!latch(ris, pattern, &time_us)) {
        refuse(ris, RIS_BAD_CHAIN);
        return;
    }
    read_outputs(ris, ris->stream);
    put32(payload(ris), time_us);
    put32(payload(ris) + 4, crc32(0, ris->stream, ris->pattern_bytes));
    done(ris, 8);
}

static void clear_outputs(struct ris *ris)
{
    uint32_t time_us;
    drop_schedule(ris);
    memset(ris->stream, 0, ris->pattern_bytes);
    ris->hal.exchange(ris->hal.self, ris->stream, ris->returned, ris->pattern_bytes);
    ris->hal.exchange(ris->hal.self, ris->stream, ris->returned, ris->pattern_bytes);
    ris->chain_bad = memcmp(ris->stream, ris->returned, ris->pattern_bytes) != 0;
    /* latch even if the chain returns other bits: when something is wrong, the outputs should be cleared */
    time_us = ris->hal.latch(ris->hal.self);
    (void)time_us;
}

/* ------------------------------------------------------------------------------------------------ commands */

static void hello(struct ris *ris, const uint8_t *request)
{
    uint8_t *p = payload(ris);
    uint32_t session = get32(request);
    if (!ris->in_session || session != ris->session) {
        ris->in_session = true;
        ris->session = session;
        ris->cleared = false;
        ris->waits = false;
        drop_schedule(ris);
        codebook_abort(&ris->book);
    }
    put32(p, session);
    p[4] = RIS_VERSION_MAJOR;
    p[5] = RIS_VERSION_MINOR;
    p[6] = RIS_VERSION_PATCH;
    p[7] = ris->config.phase_bits;
    put16(p + 8, ris->config.rows);
    put16(p + 10, ris->config.columns);
    put16(p + 12, ris->book.capacity);
    put16(p + 14, ris->book.count);
    put32(p + 16, ris->book.crc);
    put16(p + 20, RIS_CHUNK_MAX);
    put32(p + 22, ris->config.serial);
    put32(p + 26, ris->hal.clock_us(ris->hal.self));
    p[30] = ris->config.reset_cause;
    put16(p + 31, ris->config.input_bytes);
    put16(p + 33, ris->schedule.capacity);
    answer(ris, RIS_DONE | RIS_HELLO, 35);
}

static void readback(struct ris *ris)
{
    uint8_t *p = payload(ris);
    if (ris->hal.latch_waits(ris->hal.self)) {
        refuse(ris, RIS_SCHEDULED);
        return;
    }
    if (ris->chain_bad) { /* the chain holds other bits than the outputs */
        refuse(ris, RIS_BAD_CHAIN);
        return;
    }
    read_outputs(ris, p);
    put32(p + ris->pattern_bytes, crc32(0, p, ris->pattern_bytes));
    answer(ris, RIS_DONE | RIS_READBACK, (size_t)ris->pattern_bytes + 4u);
}

/* Add a pattern to the schedule; reply with its time and its CRC-32. */
static void add_to_schedule(struct ris *ris, const uint8_t *data)
{
    const uint8_t *pattern = data + 6;
    uint32_t at_us = get32(data + 2);
    enum ris_error error = RIS_BAD_PATTERN;
    if (get16(data) == 0)
        drop_schedule(ris);
    if (plan_padded(pattern, ris->pattern_bytes, ris->n_bits))
        error = schedule_add(&ris->schedule, get16(data), at_us, pattern, ris->hal.clock_us(ris->hal.self));
    if (error == RIS_OK)
        error = follow_schedule(ris);
    put32(payload(ris), at_us);
    put32(payload(ris) + 4, crc32(0, pattern, ris->pattern_bytes));
    settle(ris, error, 8);
}

/* Return the length of a command's payload; that of a codebook chunk is longer. */
static size_t expected_size(const struct ris *ris, uint8_t command)
{
    switch (command) {
    case RIS_HELLO:
    case RIS_WATCHDOG:
    case RIS_BOOK_CHUNK:
        return 4;
    case RIS_APPLY:
    case RIS_QUEUE:
        return ris->pattern_bytes;
    case RIS_SCHEDULE:
        return 6u + (size_t)ris->pattern_bytes;
    case RIS_INDEX:
        return 2;
    case RIS_BOOK_BEGIN:
        return 6;
    default:
        return 0;
    }
}

static void serve(struct ris *ris, const uint8_t *data, size_t size, uint32_t now_us)
{
    const uint8_t *stored;
    uint8_t *p = payload(ris);
    size_t expected = expected_size(ris, ris->command);
    bool chunk = ris->command == RIS_BOOK_CHUNK;
    if (ris->command < RIS_HELLO || ris->command > RIS_SCHEDULE) {
        refuse(ris, RIS_UNKNOWN);
        return;
    }
    if (chunk ? size <= expected || size > expected + RIS_CHUNK_MAX : size != expected) {
        refuse(ris, RIS_BAD_LENGTH);
        return;
    }
    switch ((enum ris_command)ris->command) {
    case RIS_HELLO:
        hello(ris, data);
        break;
    case RIS_APPLY:
        if (!plan_padded(data, size, ris->n_bits)) {
            refuse(ris, RIS_BAD_PATTERN);
            break;
        }
        put32(p, crc32(0, data, size));
        answer(ris, RIS_QUEUED | RIS_APPLY, 4);
        apply(ris, data);
        break;
    case RIS_QUEUE:
        if (!plan_padded(data, size, ris->n_bits)) {
            refuse(ris, RIS_BAD_PATTERN);
            break;
        }
        memcpy(ris->waiting, data, size);
        ris->waits = true;
        put32(p, crc32(0, data, size));
        finish(ris, RIS_QUEUED | RIS_QUEUE, 4);
        break;
    case RIS_TRIGGER:
        if (!ris->waits) {
            refuse(ris, RIS_NOTHING_WAITS);
            break;
        }
        ris->waits = false;
        apply(ris, ris->waiting);
        break;
    case RIS_INDEX:
        stored = codebook_pattern(&ris->book, get16(data));
        if (stored != NULL)
            apply(ris, stored);
        else
            refuse(ris, RIS_BAD_INDEX);
        break;
    case RIS_BOOK_BEGIN:
        settle(ris, codebook_begin(&ris->book, get16(data), get32(data + 2), now_us), 0);
        break;
    case RIS_BOOK_CHUNK: {
        enum ris_error error =
            codebook_chunk(&ris->book, get32(data), data + 4, (uint16_t)(size - 4u), now_us);
        put32(p, ris->book.received);
        settle(ris, error, 4);
        break;
    }
    case RIS_BOOK_END: {
        enum ris_error error = codebook_end(&ris->book);
        put16(p, ris->book.count);
        put32(p + 2, ris->book.crc);
        settle(ris, error, 6);
        break;
    }
    case RIS_BOOK_ABORT:
        codebook_abort(&ris->book);
        done(ris, 0);
        break;
    case RIS_READBACK:
        readback(ris);
        break;
    case RIS_TIME:
        put32(p, ris->hal.clock_us(ris->hal.self));
        answer(ris, RIS_DONE | RIS_TIME, 4);
        break;
    case RIS_WATCHDOG:
        if (get32(data) > WATCHDOG_MAX_MS) {
            refuse(ris, RIS_BAD_VALUE);
            break;
        }
        ris->watchdog_us = get32(data) * 1000u;
        done(ris, 0);
        break;
    case RIS_SCHEDULE:
        add_to_schedule(ris, data);
        break;
    case RIS_RESET:
        /* everything is cleared before the host gets the reply, so that its next request reaches a fresh board */
        clear_outputs(ris);
        ris->in_session = false;
        ris->waits = false;
        codebook_abort(&ris->book);
        ris->book.count = 0;
        answer(ris, RIS_DONE | RIS_RESET, 0);
        ris->hal.reset(ris->hal.self);
        break;
    }
}

/* Commands that change nothing are executed again when repeated; for all others the stored reply is sent again. */
static bool harmless(uint8_t command)
{
    return command == RIS_READBACK || command == RIS_TIME;
}

static void take_frame(struct ris *ris, uint8_t *frame, size_t n, uint32_t now_us)
{
    n = cobs_decode(frame, n);
    if (n == COBS_BROKEN || n < RIS_REQUEST_OVERHEAD) {
        complain(ris, RIS_BAD_FRAME);
        return;
    }
    uint16_t crc = get16(frame + n - 2);
    if (crc16(CRC16_START, frame, n - 2) != crc) {
        complain(ris, RIS_BAD_CRC);
        return;
    }
    uint16_t seq = get16(frame + 1);
    if (frame[0] != RIS_PROTOCOL) {
        complain(ris, RIS_BAD_PROTOCOL);
        return;
    }
    ris->heard_us = now_us;
    ris->watching = true;
    ris->seq = seq;
    ris->command = frame[3];
    if (ris->command != RIS_HELLO && !ris->in_session) {
        payload(ris)[0] = ris->command;
        payload(ris)[1] = RIS_NO_SESSION;
        answer(ris, RIS_ERROR, 2);
        return;
    }
    if (ris->command != RIS_HELLO) {
        uint16_t ahead = (uint16_t)(seq - ris->last_seq);
        bool again = ahead == 0 && crc == ris->last_crc;
        if (again && !harmless(ris->command)) {
            memcpy(payload(ris), ris->last_payload, ris->last_size);
            answer(ris, ris->last_kind, ris->last_size);
            return;
        }
        if (!again && (ahead == 0 || ahead >= 0x8000u)) {
            payload(ris)[0] = ris->command;
            payload(ris)[1] = RIS_STALE;
            answer(ris, RIS_ERROR, 2);
            return;
        }
    }
    bool same_session = ris->in_session && ris->command == RIS_HELLO && n >= HEAD + 4u &&
                        get32(frame + HEAD) == ris->session;
    if (!same_session) { /* a HELLO that is late or repeated must not set the sequence number back */
        ris->last_seq = seq;
        ris->last_crc = crc;
    }
    serve(ris, frame + HEAD, n - RIS_REQUEST_OVERHEAD, now_us);
}

/* ------------------------------------------------------------------------------------------------ interface */

bool ris_init(struct ris *ris, const struct ris_config *config, const struct hal *hal, uint8_t *memory,
              uint32_t bank_bytes, uint32_t schedule_bytes, uint32_t now_us)
{
    uint32_t size = plan_bytes(config->rows, config->columns, config->phase_bits);
    if (config->phase_bits < 1 || config->phase_bits > 3 || size == 0 || size > RIS_PATTERN_MAX)
        return false;
    memset(ris, 0, sizeof *ris);
    ris->config = *config;
    ris->hal = *hal;
    ris->pattern_bytes = (uint16_t)size;
    ris->n_bits = (uint32_t)config->rows * config->columns * config->phase_bits;
    ris->heard_us = now_us;
    schedule_init(&ris->schedule, memory + 2u * bank_bytes, schedule_bytes, ris->pattern_bytes);
    codebook_init(&ris->book, memory, bank_bytes, ris->pattern_bytes, ris->n_bits);
    clear_outputs(ris);
    payload(ris)[0] = config->reset_cause;
    answer(ris, RIS_BOOTED, 1);
    return true;
}

void ris_feed(struct ris *ris, uint8_t byte, uint32_t now_us)
{
    if (byte != 0) {
        if (ris->received < sizeof ris->rx)
            ris->rx[ris->received++] = byte;
        else
            ris->overrun = true;
        return;
    }
    /* The buffer is ready for the next frame before this one is answered. */
    size_t n = ris->received;
    bool overrun = ris->overrun;
    ris->received = 0;
    ris->overrun = false;
    if (overrun)
        complain(ris, RIS_TOO_LONG);
    else if (n != 0) /* two zeros in a row are no error: a host sends them to begin a new frame */
        take_frame(ris, ris->rx, n, now_us);
}

void ris_poll(struct ris *ris, uint32_t now_us)
{
    codebook_poll(&ris->book, now_us);
    (void)follow_schedule(ris);
    if (ris->watchdog_us != 0 && ris->watching && now_us - ris->heard_us > ris->watchdog_us) {
        ris->watching = false;
        ris->cleared = true;
        clear_outputs(ris);
    }
}
