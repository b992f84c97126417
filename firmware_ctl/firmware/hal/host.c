/* The controller as a process, which the simulated bench runs in place of a board.
 *
 *   ris595 [--rows N] [--columns N] [--phase-bits N] [--serial N] [--codebook PATTERNS]
 *          [--schedule PATTERNS] [--uart FD] [--bench FD] [--fault bit-order | ack-early | stuck-upload]
 *
 * The UART is one descriptor for both directions; the default is standard input and output. The bench is a socket. To
 * it the process sends `L` and the bytes of the chain when the outputs latch them, and `T` to get the time; the answer
 * to both is the board's clock, 32 bits of µs, least significant byte first. `S`, a time and the bytes of the chain have
 * them latched at that time; the answer is a byte, 0 if it has passed. The bench takes any number of them at once, since
 * its time may pass in steps, and the process could not follow. `O` asks the bench what the outputs hold,
 * in the order of the chain. Without a bench the machine's clock is used. The process ends when UART or bench is closed.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../core/ris.h"

#define BANK_BYTES (1u << 20)
#define INPUT_BYTES 4096u
#define SCHEDULE_BYTES (1u << 20)
#define LATE_US 20000u    /* ack-early: the outputs change this time after the acknowledgement */
#define STUCK_US 3000000u /* stuck-upload: the board receives nothing for this time, once */

enum fault { NONE, BIT_ORDER, ACK_EARLY, STUCK_UPLOAD };

struct board {
    struct ris ris;
    int uart_in, uart_out, bench;
    enum fault fault;
    size_t n;                        /* registers */
    uint8_t chain[RIS_PATTERN_MAX];  /* chain[0] is in the farthest register and is shifted out first */
    uint8_t output[RIS_PATTERN_MAX]; /* the latched bytes, in the same order */
    bool fresh;                      /* the bench has just latched `output`, and need not be asked for it */
    bool late, stuck;
    uint32_t since_us;
    bool reset;
};

static struct board board;
static uint8_t memory[2u * BANK_BYTES + SCHEDULE_BYTES];

static uint32_t machine_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint32_t)((uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u);
}

static void give(int fd, const uint8_t *data, size_t n)
{
    while (n > 0) {
        ssize_t sent = write(fd, data, n);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd room = {.fd = fd, .events = POLLOUT};
            (void)poll(&room, 1, -1);
            continue;
        }
        if (sent <= 0)
            exit(0);
        data += sent;
        n -= (size_t)sent;
    }
}

/* Wait for n bytes from the bench. */
static void hear_bench(uint8_t *answer, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t more = read(board.bench, answer + got, n - got);
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0)
            exit(0);
        got += (size_t)more;
    }
}

static uint32_t ask_bench(const uint8_t *message, size_t n)
{
    uint8_t answer[4];
    if (board.bench < 0)
        return machine_us();
    give(board.bench, message, n);
    hear_bench(answer, sizeof answer);
    return answer[0] | (uint32_t)answer[1] << 8 | (uint32_t)answer[2] << 16 | (uint32_t)answer[3] << 24;
}

static void hal_send(void *self, const uint8_t *data, size_t n)
{
    (void)self;
    give(board.uart_out, data, n);
}

static void hal_exchange(void *self, const uint8_t *out, uint8_t *in, size_t n)
{
    (void)self;
    memcpy(in, board.chain, n);
    memcpy(board.chain, out, n);
}

/* The outputs take over the bits of the chain. */
static void to_outputs(void)
{
    for (size_t i = 0; i < board.n; i++) {
        uint8_t byte = board.chain[i];
        if (board.fault == BIT_ORDER) {
            byte = 0;
            for (unsigned bit = 0; bit < 8; bit++)
                if (board.chain[i] & (1u << bit))
                    byte |= (uint8_t)(0x80u >> bit);
        }
        board.output[i] = byte;
    }
}

static uint32_t take_over(void)
{
    static uint8_t message[1u + RIS_PATTERN_MAX];
    to_outputs();
    message[0] = 'L';
    memcpy(message + 1, board.output, board.n);
    board.fresh = true;
    return ask_bench(message, 1 + board.n);
}

static uint32_t hal_clock_us(void *self)
{
    (void)self;
    return ask_bench((const uint8_t *)"T", 1);
}

static uint32_t hal_latch(void *self)
{
    if (board.fault == ACK_EARLY) {
        board.late = true;
        board.since_us = machine_us();
        return hal_clock_us(self);
    }
    return take_over();
}

static void hal_outputs(void *self, uint8_t *in, size_t n)
{
    (void)self;
    if (board.bench >= 0 && !board.fresh) {
        give(board.bench, (const uint8_t *)"O", 1);
        hear_bench(board.output, board.n);
    }
    memcpy(in, board.output, n);
}

static bool hal_latch_at(void *self, uint32_t time_us)
{
    static uint8_t message[5u + RIS_PATTERN_MAX];
    uint8_t taken = 0;
    (void)self;
    if (board.bench < 0)
        return false;
    to_outputs();
    message[0] = 'S';
    for (unsigned i = 0; i < 4; i++)
        message[1 + i] = (uint8_t)(time_us >> 8 * i);
    memcpy(message + 5, board.output, board.n);
    board.fresh = false;
    give(board.bench, message, 5 + board.n);
    hear_bench(&taken, 1);
    return taken != 0;
}

static bool hal_latch_waits(void *self)
{
    (void)self;
    return false;
}

static void hal_forget_latch(void *self)
{
    (void)self;
}

static void hal_reset(void *self)
{
    (void)self;
    board.reset = true;
}

static uint32_t number(const char *option, const char *text, uint32_t highest)
{
    char *end;
    unsigned long value;
    errno = 0;
    value = text == NULL ? 0 : strtoul(text, &end, 10);
    if (text == NULL || *text == '\0' || *end != '\0' || errno != 0 || value > highest) {
        fprintf(stderr, "ris595: %s %s, accepted: 0 to %lu\n", option, text == NULL ? "" : text,
                (unsigned long)highest);
        exit(2);
    }
    return (uint32_t)value;
}

static enum fault fault_named(const char *name)
{
    static const char *const names[] = {"none", "bit-order", "ack-early", "stuck-upload"};
    for (size_t i = 0; name != NULL && i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum fault)i;
    fprintf(stderr, "ris595: --fault %s, accepted: none, bit-order, ack-early, stuck-upload\n", name == NULL ? "" : name);
    exit(2);
}

/* Return whether the board receives nothing at the moment (stuck-upload). */
static bool deaf(uint32_t now_us)
{
    if (board.fault == STUCK_UPLOAD && !board.stuck && board.ris.book.received > 0) {
        board.stuck = true;
        board.since_us = now_us;
    }
    if (board.stuck && board.fault == STUCK_UPLOAD && now_us - board.since_us > STUCK_US)
        board.fault = NONE;
    return board.stuck && board.fault == STUCK_UPLOAD;
}

int main(int argc, char **argv)
{
    struct ris_config config = {.rows = 16, .columns = 16, .phase_bits = 1, .input_bytes = INPUT_BYTES};
    struct hal hal = {NULL, hal_send, hal_exchange, hal_latch,    hal_outputs,     hal_clock_us,
                      hal_latch_at, hal_latch_waits, hal_forget_latch, hal_reset};
    uint32_t codebook = 256, schedule = 256, schedule_bytes;
    board.uart_in = STDIN_FILENO;
    board.uart_out = STDOUT_FILENO;
    board.bench = -1;
    for (int i = 1; i < argc; i += 2) {
        const char *option = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(option, "--rows") == 0)
            config.rows = (uint16_t)number(option, value, 256);
        else if (strcmp(option, "--columns") == 0)
            config.columns = (uint16_t)number(option, value, 256);
        else if (strcmp(option, "--phase-bits") == 0)
            config.phase_bits = (uint8_t)number(option, value, 3);
        else if (strcmp(option, "--serial") == 0)
            config.serial = number(option, value, UINT32_MAX);
        else if (strcmp(option, "--codebook") == 0)
            codebook = number(option, value, UINT16_MAX);
        else if (strcmp(option, "--schedule") == 0)
            schedule = number(option, value, UINT16_MAX);
        else if (strcmp(option, "--uart") == 0)
            board.uart_in = board.uart_out = (int)number(option, value, 65535);
        else if (strcmp(option, "--bench") == 0)
            board.bench = (int)number(option, value, 65535);
        else if (strcmp(option, "--fault") == 0)
            board.fault = fault_named(value);
        else {
            fprintf(stderr, "ris595: unknown option %s\n", option);
            return 2;
        }
    }
    board.n = ((size_t)config.rows * config.columns * config.phase_bits + 7u) / 8u;
    if (board.n * codebook > BANK_BYTES) {
        fprintf(stderr, "ris595: a codebook of %lu patterns does not fit\n", (unsigned long)codebook);
        return 2;
    }
    schedule_bytes = schedule * (SCHEDULE_HEAD + (uint32_t)board.n);
    if (schedule_bytes > SCHEDULE_BYTES)
        schedule_bytes = SCHEDULE_BYTES;
    do {
        board.reset = false;
        if (!ris_init(&board.ris, &config, &hal, memory, (uint32_t)(board.n * codebook), schedule_bytes, machine_us())) {
            fprintf(stderr, "ris595: %u × %u elements of %u bit: no such board\n", config.rows, config.columns,
                    config.phase_bits);
            return 2;
        }
        while (!board.reset) {
            uint8_t bytes[4096];
            ssize_t n = 0;
            struct pollfd heard = {.fd = board.uart_in, .events = POLLIN};
            struct pollfd ends = {.fd = board.bench, .events = POLLIN}; /* an event: it was closed */
            struct pollfd both[2] = {heard, ends};
            bool closed_ears = deaf(machine_us());
            if (closed_ears)
                both[0].fd = -1;
            if (poll(both, 2, 5) < 0 && errno != EINTR)
                return 1;
            if (both[1].revents != 0)
                return 0;
            if (!closed_ears && both[0].revents != 0) {
                n = read(board.uart_in, bytes, sizeof bytes);
                if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
                    return 0;
            }
            board.fresh = false;
            /* one byte at a time, because the board may be reset or stuck after each */
            for (ssize_t i = 0; i < n && !board.reset; i++)
                ris_feed(&board.ris, bytes[i], machine_us());
            ris_poll(&board.ris, machine_us());
            if (board.late && machine_us() - board.since_us > LATE_US) {
                board.late = false;
                (void)take_over();
            }
        }
    } while (true);
}
