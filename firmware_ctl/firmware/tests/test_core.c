/* Unit tests of the core, on the machine that builds it, under the address and undefined-behaviour sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/crc.h"
#include "../core/plan.h"
#include "../core/ris.h"

static unsigned checks;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        checks++;                                                                                                      \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ------------------------------------------------------------------------------------------------ a board on paper */

#define N 32u          /* bytes of a pattern: 16 × 16 elements of 1 bit */
#define BANK (4u * N)
#define SCHEDULE (3u * (SCHEDULE_HEAD + N) + 1u)
#define REPLIES 8u

struct reply {
    uint16_t seq;
    uint8_t kind, flags;
    size_t size;
    uint8_t payload[RIS_PAYLOAD_MAX];
};

static struct {
    struct ris ris;
    uint8_t memory[2u * BANK + SCHEDULE];
    uint8_t chain[N], output[N];
    unsigned latches, resets;
    uint32_t now_us, clock_us;
    bool waits;     /* the chain is latched at due_us */
    uint32_t due_us;
    uint8_t broken; /* what the wire from the end of the chain flips */
    bool stuck;     /* the outputs do not follow the latch */
    struct reply replies[REPLIES];
    size_t n_replies;
    uint8_t rx_left; /* bytes that the core still held when it replied */
} board;

static void paper_send(void *self, const uint8_t *data, size_t n)
{
    uint8_t frame[COBS_MAX(RIS_REPLY_OVERHEAD + RIS_PAYLOAD_MAX)];
    (void)self;
    CHECK(n > 1 && n <= sizeof frame && data[n - 1] == 0);
    memcpy(frame, data, n - 1);
    CHECK(memchr(frame, 0, n - 1) == NULL);
    size_t m = cobs_decode(frame, n - 1);
    CHECK(m != COBS_BROKEN && m >= RIS_REPLY_OVERHEAD);
    CHECK(crc16(CRC16_START, frame, m - 2) == (frame[m - 2] | frame[m - 1] << 8));
    CHECK(frame[0] == RIS_PROTOCOL);
    struct reply *reply = &board.replies[board.n_replies++ % REPLIES];
    reply->seq = (uint16_t)(frame[1] | frame[2] << 8);
    reply->kind = frame[3];
    reply->flags = frame[4];
    reply->size = m - RIS_REPLY_OVERHEAD;
    memcpy(reply->payload, frame + 5, reply->size);
    board.rx_left = (uint8_t)board.ris.received;
}

static void paper_exchange(void *self, const uint8_t *out, uint8_t *in, size_t n)
{
    (void)self;
    CHECK(n == N);
    for (size_t i = 0; i < n; i++)
        in[i] = board.chain[i] ^ board.broken;
    memcpy(board.chain, out, n);
}

static uint32_t paper_latch(void *self)
{
    (void)self;
    board.latches++;
    if (!board.stuck)
        memcpy(board.output, board.chain, N);
    return board.clock_us;
}

static void paper_outputs(void *self, uint8_t *in, size_t n)
{
    (void)self;
    memcpy(in, board.output, n);
}

static uint32_t paper_clock(void *self)
{
    (void)self;
    return board.clock_us;
}

static bool paper_latch_at(void *self, uint32_t time_us)
{
    (void)self;
    CHECK(!board.waits);
    if ((int32_t)(time_us - board.clock_us) <= 0)
        return false;
    board.waits = true;
    board.due_us = time_us;
    return true;
}

static bool paper_latch_waits(void *self)
{
    (void)self;
    return board.waits;
}

static void paper_forget_latch(void *self)
{
    (void)self;
    board.waits = false;
}

/* Let the board's clock go on, in steps in which the core is called; the hardware latches by itself. */
static void go_on(uint32_t until_us, uint32_t step_us)
{
    while (board.clock_us != until_us) {
        board.clock_us += until_us - board.clock_us < step_us ? until_us - board.clock_us : step_us;
        if (board.waits && (int32_t)(board.clock_us - board.due_us) >= 0) {
            board.waits = false;
            (void)paper_latch(NULL);
        }
        ris_poll(&board.ris, board.now_us);
    }
}

static void paper_reset(void *self)
{
    (void)self;
    board.resets++;
}

static const struct hal PAPER = {NULL,        paper_send,     paper_exchange,    paper_latch,        paper_outputs,
                                 paper_clock, paper_latch_at, paper_latch_waits, paper_forget_latch, paper_reset};

static void power_up(void)
{
    const struct ris_config config = {.rows = 16, .columns = 16, .phase_bits = 1, .serial = 7, .reset_cause = 1,
                                       .input_bytes = 0x1234};
    memset(&board, 0, sizeof board);
    memset(board.output, 0xAA, N);
    CHECK(ris_init(&board.ris, &config, &PAPER, board.memory, BANK, SCHEDULE, 0));
}

/* Feed a request; return the last reply that it brought. */
static const struct reply *request(uint16_t seq, uint8_t command, const uint8_t *payload, size_t size)
{
    uint8_t frame[1024], coded[COBS_MAX(1024)];
    frame[0] = RIS_PROTOCOL;
    frame[1] = (uint8_t)seq;
    frame[2] = (uint8_t)(seq >> 8);
    frame[3] = command;
    if (size > 0)
        memcpy(frame + 4, payload, size);
    uint16_t crc = crc16(CRC16_START, frame, 4 + size);
    frame[4 + size] = (uint8_t)crc;
    frame[5 + size] = (uint8_t)(crc >> 8);
    size_t n = cobs_encode(frame, 6 + size, coded);
    board.n_replies = 0;
    for (size_t i = 0; i < n; i++)
        ris_feed(&board.ris, coded[i], board.now_us);
    CHECK(board.n_replies > 0); /* errors are frames, never silence */
    return &board.replies[(board.n_replies - 1) % REPLIES];
}

static bool refused(const struct reply *reply, enum ris_error error)
{
    return reply->kind == RIS_ERROR && reply->size == 2 && reply->payload[1] == error;
}

static uint32_t word(const uint8_t *p)
{
    return (uint32_t)(p[0] | p[1] << 8 | p[2] << 16) | (uint32_t)p[3] << 24;
}

static void put_word(uint8_t *p, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

static void greet(uint16_t seq)
{
    const uint8_t session[4] = {1, 2, 3, 4};
    CHECK(request(seq, RIS_HELLO, session, 4)->kind == (RIS_DONE | RIS_HELLO));
}

static void fill(uint8_t *pattern, uint8_t seed)
{
    for (uint8_t i = 0; i < N; i++)
        pattern[i] = (uint8_t)(seed * 37u + i * 11u);
}

static bool outputs_hold(const uint8_t *pattern)
{
    uint8_t stream[N];
    plan_stream(pattern, N, stream);
    return memcmp(stream, board.output, N) == 0;
}

/* ------------------------------------------------------------------------------------------------ pieces */

static void test_checksums(void)
{
    const uint8_t nine[] = "123456789";
    CHECK(crc16(CRC16_START, nine, 9) == 0x29B1); /* the check values of the CRC catalogue */
    CHECK(crc32(0, nine, 9) == 0xCBF43926u);
    CHECK(crc32(crc32(0, nine, 4), nine + 4, 5) == 0xCBF43926u);
}

static void test_cobs(void)
{
    static const struct {
        size_t n, m;
        uint8_t plain[4], coded[6];
    } EXAMPLES[] = {
        {0, 2, {0}, {1, 0}},
        {1, 3, {0}, {1, 1, 0}},
        {3, 5, {0x11, 0, 0x22}, {2, 0x11, 2, 0x22, 0}},
        {4, 6, {0x11, 0x22, 0, 0x33}, {3, 0x11, 0x22, 2, 0x33, 0}},
        {2, 4, {0x11, 0}, {2, 0x11, 1, 0}},
    };
    uint8_t data[600], coded[COBS_MAX(600)];
    for (size_t i = 0; i < sizeof EXAMPLES / sizeof *EXAMPLES; i++) {
        CHECK(cobs_encode(EXAMPLES[i].plain, EXAMPLES[i].n, coded) == EXAMPLES[i].m);
        CHECK(memcmp(coded, EXAMPLES[i].coded, EXAMPLES[i].m) == 0);
    }
    for (size_t n = 0; n <= sizeof data; n++) { /* runs around 254 and 508 among them */
        for (size_t i = 0; i < n; i++)
            data[i] = (uint8_t)(i % 255u + 1u);
        size_t m = cobs_encode(data, n, coded);
        CHECK(m == n + 2 + (n == 0 ? 0 : (n - 1) / 254)); /* no run more than needed */
        CHECK(m <= COBS_MAX(n));
        CHECK(cobs_decode(coded, m - 1) == n);
        CHECK(memcmp(coded, data, n) == 0);
    }
    uint8_t broken[] = {4, 1, 2}; /* one byte short */
    CHECK(cobs_decode(broken, sizeof broken) == COBS_BROKEN);
    CHECK(cobs_decode(broken, 0) == COBS_BROKEN);
}

static void test_plan(void)
{
    const uint8_t pattern[3] = {0x80, 0x01, 0xF0}; /* outputs 0, 15, 16 to 19 */
    uint8_t stream[3], back[3];
    plan_stream(pattern, 3, stream);
    /* the farthest register first; of a register QH first, so that QA is the least significant bit */
    CHECK(stream[0] == 0x0F && stream[1] == 0x80 && stream[2] == 0x01);
    plan_stream(stream, 3, back);
    CHECK(memcmp(pattern, back, 3) == 0);
    CHECK(plan_bytes(16, 16, 1) == 32 && plan_bytes(3, 3, 3) == 4 && plan_bytes(256, 256, 3) == 24576);
    CHECK(plan_padded(pattern, 3, 20) && !plan_padded(pattern, 3, 19) && plan_padded(pattern, 3, 24));
}

static void test_codebook_bank_of_odd_bits(void)
{
    struct codebook book;
    uint8_t banks[16], data[4] = {1, 0xF8, 2, 0xF8};
    codebook_init(&book, banks, 8, 2, 13);
    CHECK(book.capacity == 4);
    CHECK(codebook_begin(&book, 2, crc32(0, data, 4), 0) == RIS_OK);
    CHECK(codebook_chunk(&book, 0, data, 4, 0) == RIS_OK && codebook_end(&book) == RIS_OK);
    CHECK(codebook_pattern(&book, 1)[0] == 2 && codebook_pattern(&book, 2) == NULL);
    data[3] |= 1; /* beyond the last element */
    CHECK(codebook_begin(&book, 2, crc32(0, data, 4), 0) == RIS_OK);
    CHECK(codebook_chunk(&book, 0, data, 4, 0) == RIS_OK && codebook_end(&book) == RIS_BAD_PATTERN);
    CHECK(book.count == 2 && codebook_pattern(&book, 1)[1] == 0xF8);
}

/* ------------------------------------------------------------------------------------------------ commands */

static void test_boot(void)
{
    uint8_t pattern[N] = {0};
    power_up();
    CHECK(board.n_replies == 1 && board.replies[0].kind == RIS_BOOTED && board.replies[0].payload[0] == 1);
    CHECK(board.latches == 1 && outputs_hold(pattern));
    CHECK(refused(request(5, RIS_TIME, NULL, 0), RIS_NO_SESSION));
    CHECK(refused(request(5, RIS_APPLY, pattern, N), RIS_NO_SESSION));
    CHECK(board.latches == 1);
    const struct ris_config wrong[] = {
        {16, 16, 4, 0, 0, 0}, {16, 16, 0, 0, 0, 0}, {0, 16, 1, 0, 0, 0}, {17, 16, 1, 0, 0, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(!ris_init(&board.ris, &wrong[i], &PAPER, board.memory, BANK, SCHEDULE, 0));
}

static void test_hello(void)
{
    const uint8_t session[4] = {0xEF, 0xBE, 0xAD, 0xDE};
    power_up();
    board.clock_us = 0x01020304;
    const struct reply *r = request(9, RIS_HELLO, session, 4);
    CHECK(r->seq == 9 && r->kind == (RIS_DONE | RIS_HELLO) && r->size == 35);
    CHECK(r->payload[31] == 0x34 && r->payload[32] == 0x12);
    CHECK(word(r->payload) == 0xDEADBEEF && r->payload[7] == 1);
    CHECK(r->payload[8] == 16 && r->payload[10] == 16 && r->payload[12] == 4 && r->payload[14] == 0);
    CHECK(r->payload[20] == RIS_CHUNK_MAX && r->payload[22] == 7 && word(r->payload + 26) == 0x01020304);
}

static void test_apply(void)
{
    uint8_t pattern[N];
    power_up();
    greet(1);
    fill(pattern, 1);
    board.clock_us = 123456789;
    const struct reply *r = request(2, RIS_APPLY, pattern, N);
    CHECK(board.n_replies == 2 && board.replies[0].kind == (RIS_QUEUED | RIS_APPLY) && board.replies[0].seq == 2);
    CHECK(r->kind == (RIS_DONE | RIS_APPLY) && r->seq == 2 && r->size == 8);
    CHECK(word(r->payload) == 123456789 && word(r->payload + 4) == crc32(0, pattern, N));
    CHECK(outputs_hold(pattern));
    CHECK(board.rx_left == 0); /* cleared before the acknowledgement was sent */
    r = request(3, RIS_READBACK, NULL, 0);
    CHECK(r->size == N + 4 && memcmp(r->payload, pattern, N) == 0 && word(r->payload + N) == crc32(0, pattern, N));
    CHECK(refused(request(4, RIS_APPLY, pattern, N - 1), RIS_BAD_LENGTH));
    CHECK(refused(request(5, 0x0F, NULL, 0), RIS_UNKNOWN) && refused(request(6, 0, NULL, 0), RIS_UNKNOWN));
    CHECK(outputs_hold(pattern));
}

static void test_a_request_is_executed_once(void)
{
    uint8_t first[N], second[N];
    power_up();
    greet(0xFFFE); /* the count wraps below */
    fill(first, 1);
    fill(second, 2);
    board.clock_us = 100;
    request(0xFFFF, RIS_APPLY, first, N);
    unsigned latches = board.latches;
    board.clock_us = 200;
    const struct reply *again = request(0xFFFF, RIS_APPLY, first, N);
    CHECK(again->kind == (RIS_DONE | RIS_APPLY) && word(again->payload) == 100 && board.latches == latches);
    CHECK(refused(request(0xFFFF, RIS_APPLY, second, N), RIS_STALE)); /* the same number, another request */
    request(0, RIS_APPLY, second, N);
    CHECK(refused(request(0xFFFF, RIS_APPLY, first, N), RIS_STALE)); /* late */
    CHECK(outputs_hold(second));
    again = request(0, RIS_APPLY, second, N); /* what was refused did not disturb what is kept */
    CHECK(again->kind == (RIS_DONE | RIS_APPLY) && word(again->payload) == 200);
    greet(0xFFFE); /* a late HELLO does not turn the count back */
    CHECK(refused(request(0xFFFF, RIS_APPLY, first, N), RIS_STALE));
    /* reading is served anew */
    request(1, RIS_TIME, NULL, 0);
    board.clock_us = 300;
    CHECK(word(request(1, RIS_TIME, NULL, 0)->payload) == 300);
}

static void test_queue_and_trigger(void)
{
    uint8_t first[N], second[N];
    power_up();
    greet(1);
    fill(first, 1);
    fill(second, 2);
    CHECK(refused(request(2, RIS_TRIGGER, NULL, 0), RIS_NOTHING_WAITS));
    const struct reply *r = request(3, RIS_QUEUE, second, N);
    CHECK(r->kind == (RIS_QUEUED | RIS_QUEUE) && word(r->payload) == crc32(0, second, N));
    CHECK(r->flags == RIS_FLAG_WAITING && board.latches == 1);
    request(4, RIS_APPLY, first, N); /* does not touch what waits */
    CHECK(outputs_hold(first));
    r = request(5, RIS_TRIGGER, NULL, 0);
    CHECK(r->kind == (RIS_DONE | RIS_TRIGGER) && r->flags == 0 && word(r->payload + 4) == crc32(0, second, N));
    CHECK(outputs_hold(second));
    r = request(5, RIS_TRIGGER, NULL, 0); /* repeated: answered, not refused */
    CHECK(r->kind == (RIS_DONE | RIS_TRIGGER));
    CHECK(refused(request(6, RIS_TRIGGER, NULL, 0), RIS_NOTHING_WAITS));
}

static uint16_t begin(uint16_t seq, uint16_t count, uint32_t crc)
{
    uint8_t p[6] = {(uint8_t)count, (uint8_t)(count >> 8)};
    put_word(p + 2, crc);
    request(seq, RIS_BOOK_BEGIN, p, 6);
    return (uint16_t)(seq + 1);
}

static const struct reply *chunk(uint16_t seq, uint32_t offset, const uint8_t *data, size_t n)
{
    uint8_t p[4 + RIS_CHUNK_MAX + 1];
    put_word(p, offset);
    memcpy(p + 4, data, n);
    return request(seq, RIS_BOOK_CHUNK, p, 4 + n);
}

static bool book_holds(uint16_t seq, const uint8_t *pattern)
{
    const uint8_t index[2] = {1, 0};
    request(seq, RIS_INDEX, index, 2);
    return outputs_hold(pattern);
}

static void test_codebook(void)
{
    uint8_t old[2 * N], new[3 * N], full[RIS_CHUNK_MAX + 1];
    const uint8_t beyond[2] = {2, 0};
    uint16_t seq = 2;
    power_up();
    greet(1);
    for (uint8_t i = 0; i < 3; i++)
        fill(new + i * N, (uint8_t)(i + 10u));
    fill(old, 3);
    fill(old + N, 4);
    seq = begin(seq, 2, crc32(0, old, 2 * N));
    CHECK(chunk(seq++, 0, old, 40)->flags == RIS_FLAG_UPLOADING);
    const struct reply *r = chunk(seq, 40, old + 40, 24);
    CHECK(word(r->payload) == 64);
    CHECK(word(chunk(seq++, 40, old + 40, 24)->payload) == 64); /* repeated: taken once */
    r = request(seq++, RIS_BOOK_END, NULL, 0);
    CHECK(r->kind == (RIS_DONE | RIS_BOOK_END) && r->payload[0] == 2 && word(r->payload + 2) == crc32(0, old, 2 * N));
    CHECK(book_holds(seq++, old + N));
    CHECK(refused(request(seq++, RIS_INDEX, beyond, 2), RIS_BAD_INDEX));

    /* whatever happens to the next upload, this one stays */
    seq = begin(seq, 3, crc32(0, new, 3 * N));
    CHECK(refused(chunk(seq++, 1, new, N), RIS_BAD_OFFSET) && chunk(seq++, 0, new, N)->kind != RIS_ERROR);
    CHECK(book_holds(seq++, old + N)); /* usable during the upload */
    CHECK(refused(request(seq++, RIS_BOOK_END, NULL, 0), RIS_BAD_OFFSET) && book_holds(seq++, old + N));
    CHECK(refused(chunk(seq++, N, new + N, N), RIS_NO_UPLOAD));

    seq = begin(seq, 3, crc32(0, new, 3 * N) ^ 1u);
    chunk(seq++, 0, new, 3 * N);
    CHECK(refused(request(seq++, RIS_BOOK_END, NULL, 0), RIS_BAD_CONTENT) && book_holds(seq++, old + N));

    seq = begin(seq, 3, crc32(0, new, 3 * N));
    chunk(seq++, 0, new, 3 * N);
    CHECK(request(seq++, RIS_BOOK_ABORT, NULL, 0)->flags == 0);
    CHECK(refused(request(seq++, RIS_BOOK_END, NULL, 0), RIS_NO_UPLOAD) && book_holds(seq++, old + N));

    seq = begin(seq, 3, crc32(0, new, 3 * N));
    board.now_us += CODEBOOK_TIMEOUT_US;
    ris_poll(&board.ris, board.now_us);
    chunk(seq++, 0, new, 2 * N);
    board.now_us += CODEBOOK_TIMEOUT_US; /* the time is that since the last chunk, not since the beginning */
    ris_poll(&board.ris, board.now_us);
    CHECK(board.ris.book.uploading);
    board.now_us += 1;
    ris_poll(&board.ris, board.now_us);
    CHECK(refused(chunk(seq++, 2 * N, new + 2 * N, N), RIS_NO_UPLOAD) && book_holds(seq++, old + N));

    seq = begin(seq, 5, 0); /* more than there is room for */
    CHECK(refused(chunk(seq++, 0, new, N), RIS_NO_UPLOAD) && book_holds(seq++, old + N));
    seq = begin(seq, 0, 0);
    CHECK(refused(chunk(seq++, 0, new, N), RIS_NO_UPLOAD) && book_holds(seq++, old + N));
    seq = begin(seq, 1, 0);
    CHECK(refused(chunk(seq++, 0, new, N + 1), RIS_BAD_OFFSET));
    CHECK(refused(chunk(seq++, 0, new, 0), RIS_BAD_LENGTH));
    seq = begin(seq, 4, 0); /* one byte more than a frame may carry */
    memset(full, 0, sizeof full);
    CHECK(refused(chunk(seq++, 0, full, sizeof full), RIS_BAD_LENGTH));
    CHECK(chunk(seq++, 0, full, sizeof full - 1)->kind != RIS_ERROR);

    seq = begin(seq, 3, crc32(0, new, 3 * N));
    chunk(seq++, 0, new, 3 * N);
    CHECK(request(seq++, RIS_BOOK_END, NULL, 0)->kind != RIS_ERROR && book_holds(seq++, new + N));
    CHECK(request(seq++, RIS_INDEX, beyond, 2)->kind != RIS_ERROR && outputs_hold(new + 2 * N));
}

static void test_a_broken_chain_latches_nothing(void)
{
    uint8_t first[N], second[N];
    power_up();
    greet(1);
    fill(first, 1);
    fill(second, 2);
    request(2, RIS_APPLY, first, N);
    unsigned latches = board.latches;
    board.broken = 0x10;
    CHECK(refused(request(3, RIS_APPLY, second, N), RIS_BAD_CHAIN) && board.latches == latches && outputs_hold(first));
    CHECK(refused(request(4, RIS_READBACK, NULL, 0), RIS_BAD_CHAIN));
    board.broken = 0;
    CHECK(request(5, RIS_APPLY, second, N)->kind != RIS_ERROR && outputs_hold(second));
    CHECK(request(6, RIS_READBACK, NULL, 0)->kind != RIS_ERROR);
    /* cleared all the same, but what it holds cannot be told */
    const uint8_t zero[N] = {0};
    board.broken = 0x10;
    put_word(first, 10);
    request(7, RIS_WATCHDOG, first, 4);
    board.now_us += 10001;
    ris_poll(&board.ris, board.now_us);
    CHECK(outputs_hold(zero) && refused(request(8, RIS_READBACK, NULL, 0), RIS_BAD_CHAIN));
}

static void test_the_reply_tells_what_the_outputs_hold(void)
{
    uint8_t first[N], second[N];
    power_up();
    greet(1);
    fill(first, 1);
    fill(second, 2);
    request(2, RIS_APPLY, first, N);
    board.stuck = true;
    CHECK(word(request(3, RIS_APPLY, second, N)->payload + 4) == crc32(0, first, N));
    CHECK(memcmp(request(4, RIS_READBACK, NULL, 0)->payload, first, N) == 0);
}

static const struct reply *scheduled(uint16_t seq, uint16_t index, uint32_t at_us, const uint8_t *pattern)
{
    uint8_t p[6 + N] = {(uint8_t)index, (uint8_t)(index >> 8)};
    put_word(p + 2, at_us);
    memcpy(p + 6, pattern, N);
    return request(seq, RIS_SCHEDULE, p, sizeof p);
}

static void test_schedule(void)
{
    uint8_t before[N], pattern[3][N];
    power_up();
    greet(1);
    const uint8_t session[4] = {3};
    const uint8_t *hello = request(1, RIS_HELLO, session, 4)->payload;
    CHECK((hello[33] | hello[34] << 8) == 3);
    fill(before, 9);
    for (uint8_t i = 0; i < 3; i++)
        fill(pattern[i], i);
    request(2, RIS_APPLY, before, N);
    board.clock_us = 0xFFFFF000u; /* the clock wraps between the first two */
    uint32_t start_us = board.clock_us + 2000u;
    CHECK(refused(scheduled(3, 1, start_us, pattern[0]), RIS_BAD_OFFSET));
    CHECK(refused(scheduled(4, 0, board.clock_us, pattern[0]), RIS_TOO_LATE));
    const struct reply *r = scheduled(5, 0, start_us, pattern[0]);
    CHECK(r->kind == (RIS_DONE | RIS_SCHEDULE) && r->size == 8 && r->flags == RIS_FLAG_SCHEDULED);
    CHECK(word(r->payload) == start_us && word(r->payload + 4) == crc32(0, pattern[0], N));
    CHECK(refused(scheduled(6, 1, start_us - 1u, pattern[1]), RIS_TOO_LATE));
    CHECK(scheduled(7, 1, start_us + 5000u, pattern[1])->kind == (RIS_DONE | RIS_SCHEDULE));
    CHECK(scheduled(8, 2, start_us + 6000u, pattern[2])->kind == (RIS_DONE | RIS_SCHEDULE));
    CHECK(refused(scheduled(9, 3, start_us + 7000u, pattern[0]), RIS_BAD_COUNT)); /* three is all it has room for */
    CHECK(refused(request(10, RIS_READBACK, NULL, 0), RIS_SCHEDULED));
    go_on(start_us - 1u, 100);
    CHECK(outputs_hold(before));
    go_on(start_us, 100);
    CHECK(outputs_hold(pattern[0]));
    go_on(start_us + 4999u, 100);
    CHECK(outputs_hold(pattern[0]));
    go_on(start_us + 5000u, 100);
    CHECK(outputs_hold(pattern[1]));
    go_on(start_us + 6000u, 100);
    CHECK(outputs_hold(pattern[2]));
    CHECK(request(11, RIS_TIME, NULL, 0)->flags == 0);
    CHECK(memcmp(request(12, RIS_READBACK, NULL, 0)->payload, pattern[2], N) == 0);
}

static void test_what_ends_a_schedule(void)
{
    uint8_t first[N], second[N], other[N];
    fill(first, 1);
    fill(second, 2);
    fill(other, 3);
    power_up();
    greet(1);
    request(2, RIS_APPLY, other, N);
    scheduled(3, 0, 1000, first); /* a pattern applied meanwhile */
    scheduled(4, 1, 2000, second);
    CHECK(request(5, RIS_APPLY, other, N)->kind == (RIS_DONE | RIS_APPLY));
    go_on(5000, 100);
    CHECK(outputs_hold(other) && !board.waits);
    scheduled(6, 0, 6000, first); /* another schedule */
    scheduled(7, 0, 7000, second);
    go_on(6500, 100);
    CHECK(outputs_hold(other));
    go_on(7000, 100);
    CHECK(outputs_hold(second));
    scheduled(8, 0, 8000, first); /* the core is not called in time for the second one */
    scheduled(9, 1, 8100, other);
    go_on(9000, 2000);
    CHECK(outputs_hold(first) && !board.waits);
    CHECK(refused(request(10, RIS_READBACK, NULL, 0), RIS_BAD_CHAIN)); /* the chain holds the other */
    CHECK(request(11, RIS_APPLY, first, N)->kind == (RIS_DONE | RIS_APPLY));
    scheduled(12, 0, 10000, second); /* a new session */
    const uint8_t session[4] = {9};
    request(13, RIS_HELLO, session, 4);
    go_on(11000, 100);
    CHECK(outputs_hold(first));
    board.broken = 1; /* a broken chain */
    CHECK(refused(scheduled(14, 0, 12000, second), RIS_BAD_CHAIN));
    go_on(13000, 100);
    CHECK(outputs_hold(first));
}

static void test_watchdog(void)
{
    uint8_t pattern[N], zero[N] = {0}, p[4];
    power_up();
    greet(1);
    fill(pattern, 1);
    board.now_us = 0xFFFFFF00u; /* the clock wraps while it waits */
    put_word(p, 1000001);
    CHECK(refused(request(2, RIS_WATCHDOG, p, 4), RIS_BAD_VALUE));
    request(3, RIS_APPLY, pattern, N);
    board.now_us += 3600000000u;
    ris_poll(&board.ris, board.now_us);
    CHECK(outputs_hold(pattern)); /* off by default */
    put_word(p, 10);
    CHECK(request(4, RIS_WATCHDOG, p, 4)->kind == (RIS_DONE | RIS_WATCHDOG));
    board.now_us += 10000;
    ris_poll(&board.ris, board.now_us);
    CHECK(outputs_hold(pattern));
    board.now_us += 1;
    unsigned latches = board.latches;
    ris_poll(&board.ris, board.now_us);
    ris_poll(&board.ris, board.now_us);
    CHECK(outputs_hold(zero) && board.latches == latches + 1);
    CHECK(request(5, RIS_TIME, NULL, 0)->flags == RIS_FLAG_CLEARED);
    CHECK(request(6, RIS_APPLY, pattern, N)->kind != RIS_ERROR && outputs_hold(pattern));
    const uint8_t session[4] = {9};
    CHECK(request(7, RIS_HELLO, session, 4)->flags == 0);
}

static void test_reset(void)
{
    uint8_t pattern[N], zero[N] = {0};
    power_up();
    greet(1);
    fill(pattern, 1);
    request(2, RIS_APPLY, pattern, N);
    request(3, RIS_QUEUE, pattern, N);
    const struct reply *r = request(4, RIS_RESET, NULL, 0);
    CHECK(r->kind == (RIS_DONE | RIS_RESET) && r->flags == 0 && board.resets == 1 && outputs_hold(zero));
    CHECK(refused(request(5, RIS_TRIGGER, NULL, 0), RIS_NO_SESSION));
}

/* ------------------------------------------------------------------------------------------------ the line */

static void feed(const uint8_t *data, size_t n)
{
    board.n_replies = 0;
    for (size_t i = 0; i < n; i++)
        ris_feed(&board.ris, data[i], board.now_us);
}

static void test_frames_that_cannot_be_read(void)
{
    uint8_t frame[16] = {RIS_PROTOCOL + 1, 1, 0, RIS_TIME}, coded[32], zeros[3] = {0};
    power_up();
    greet(1);
    feed(zeros, 3);
    CHECK(board.n_replies == 0); /* nothing was said, nothing is answered */
    const uint8_t junk[] = {9, 1, 2, 0};
    feed(junk, 4);
    CHECK(board.n_replies == 1 && refused(board.replies, RIS_BAD_FRAME) && board.replies[0].seq == 0);
    size_t n = cobs_encode(frame, 5, coded);
    feed(coded, n);
    CHECK(refused(board.replies, RIS_BAD_FRAME));
    n = cobs_encode(frame, 8, coded);
    feed(coded, n);
    CHECK(refused(board.replies, RIS_BAD_CRC));
    uint16_t crc = crc16(CRC16_START, frame, 4);
    frame[4] = (uint8_t)crc;
    frame[5] = (uint8_t)(crc >> 8);
    n = cobs_encode(frame, 6, coded);
    feed(coded, n);
    CHECK(refused(board.replies, RIS_BAD_PROTOCOL));
    board.n_replies = 0;
    for (size_t i = 0; i < 2 * sizeof board.ris.rx; i++)
        ris_feed(&board.ris, 1, 0);
    CHECK(board.n_replies == 0);
    ris_feed(&board.ris, 0, 0);
    CHECK(board.n_replies == 1 && refused(board.replies, RIS_TOO_LONG));
    CHECK(request(2, RIS_TIME, NULL, 0)->kind == (RIS_DONE | RIS_TIME)); /* and on it goes */
}

static uint32_t dice(void)
{
    static uint32_t state = 2463534242u; /* xorshift32 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* Noise, and real requests with bytes changed, cut or repeated: the sanitizers watch, and afterwards the board works. */
static void test_noise(void)
{
    static const size_t SIZES[] = {0, 4, N, N, 0, 2, 6, 4 + N, 0, 0, 0, 0, 4, 0, 6 + N};
    uint8_t frame[6 + 6 + N], coded[COBS_MAX(sizeof frame)], pattern[N];
    uint16_t seq = 2;
    power_up();
    greet(1);
    for (unsigned round = 0; round < 200000; round++) {
        size_t n;
        if (dice() % 4 == 0) {
            n = dice() % sizeof coded;
            for (size_t i = 0; i < n; i++)
                coded[i] = (uint8_t)dice();
        } else {
            uint8_t command = (uint8_t)(dice() % 15);
            size_t size = SIZES[command];
            frame[0] = RIS_PROTOCOL;
            frame[1] = (uint8_t)seq;
            frame[2] = (uint8_t)(seq >> 8);
            frame[3] = command;
            for (size_t i = 0; i < size; i++)
                frame[4 + i] = dice() % 2 ? (uint8_t)dice() : 0;
            uint16_t crc = crc16(CRC16_START, frame, 4 + size);
            frame[4 + size] = (uint8_t)crc;
            frame[5 + size] = (uint8_t)(crc >> 8);
            n = cobs_encode(frame, 6 + size, coded);
            if (dice() % 2 == 0)
                coded[dice() % n] ^= (uint8_t)(1u << dice() % 8);
            if (dice() % 8 == 0)
                n -= dice() % n;
            seq = (uint16_t)(seq + dice() % 3);
        }
        for (size_t i = 0; i < n; i++)
            ris_feed(&board.ris, coded[i], board.now_us);
        board.now_us += dice() % 1000000;
        go_on(board.clock_us + dice() % 1000, 100);
        ris_poll(&board.ris, board.now_us);
        CHECK(board.ris.book.count <= board.ris.book.capacity);
    }
    ris_feed(&board.ris, 0, board.now_us);
    const uint8_t session[4] = {5, 5, 5, 5};
    CHECK(request(7, RIS_HELLO, session, 4)->kind == (RIS_DONE | RIS_HELLO));
    fill(pattern, 1);
    CHECK(request(8, RIS_APPLY, pattern, N)->kind == (RIS_DONE | RIS_APPLY) && outputs_hold(pattern));
}

int main(void)
{
    test_checksums();
    test_cobs();
    test_plan();
    test_codebook_bank_of_odd_bits();
    test_boot();
    test_hello();
    test_apply();
    test_a_request_is_executed_once();
    test_queue_and_trigger();
    test_codebook();
    test_a_broken_chain_latches_nothing();
    test_the_reply_tells_what_the_outputs_hold();
    test_schedule();
    test_what_ends_a_schedule();
    test_watchdog();
    test_reset();
    test_frames_that_cannot_be_read();
    test_noise();
    printf("%u checks passed\n", checks);
    return 0;
}
