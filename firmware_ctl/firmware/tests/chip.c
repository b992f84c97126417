/* A board for the controller's own binary: a simulated ATmega (libsimavr) with its UART on a pty and a chain of 74HC595
 * on its SPI and latch pins.
 *
 *     chip FIRMWARE.elf MCU REGISTERS SERIAL NOISE_PERCENT SEED
 *
 * Says "pty PATH" first, then "latch CYCLE DDRB OUTPUTS" for every rising edge of the latch pin: the data direction of
 * port B in hexadecimal, and one character 0 or 1 for each output, QA of the first register first. "reset CYCLE" when
 * the chip started anew. Ends when its standard input does.
 *
 * NOISE_PERCENT of the frames (bytes up to a zero) of either direction have one byte lost, changed or doubled. The
 * chip's time is never ahead of the wall's: without that its watchdogs would bite a host that is merely slower.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <simavr/avr_eeprom.h>
#include <simavr/avr_ioport.h>
#include <simavr/avr_spi.h>
#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_elf.h>

#define F_CPU 16000000ull
#define SLICE (F_CPU / 1000) /* cycles between two looks at the pty */
#define MAX_REGISTERS 256u
#define QUEUE 4096u /* a power of two */

struct noise {
    unsigned percent;
    uint64_t state;
    int countdown; /* bytes of this frame before the one that is hit; -1: none */
};

static avr_t *avr;
static int master;
static uint8_t chain[MAX_REGISTERS], latched[MAX_REGISTERS];
static unsigned n_registers, latch_pin;
static uint8_t queue[QUEUE];
static unsigned queue_head, queue_tail;
static int may_send = 1;
static struct noise to_chip, to_host;

static unsigned drawn(struct noise *noise, unsigned below)
{
    noise->state = noise->state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(noise->state >> 33) % below;
}

static void begin_frame(struct noise *noise)
{
    noise->countdown = drawn(noise, 100) < noise->percent ? (int)drawn(noise, 40) : -1;
}

/* Puts what becomes of one byte into out (two at most) and returns how many those are. */
static unsigned on_the_wire(struct noise *noise, uint8_t byte, uint8_t out[2])
{
    int hit = noise->countdown == 0;
    if (noise->countdown >= 0)
        noise->countdown--;
    if (byte == 0)
        begin_frame(noise);
    out[0] = out[1] = byte;
    if (!hit)
        return 1;
    switch (drawn(noise, 3)) {
    case 0:
        return 0;
    case 1:
        out[0] ^= (uint8_t)(1u << drawn(noise, 8));
        return 1;
    default:
        return 2;
    }
}

static void pump(void)
{
    avr_irq_t *input = avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT);
    while (may_send && queue_head != queue_tail) {
        uint8_t byte = queue[queue_head];
        queue_head = (queue_head + 1u) % QUEUE;
        avr_raise_irq(input, byte);
    }
}

static void uart_xon(avr_irq_t *irq, uint32_t value, void *param)
{
    (void)irq, (void)value, (void)param;
    may_send = 1;
    pump();
}

static void uart_xoff(avr_irq_t *irq, uint32_t value, void *param)
{
    (void)irq, (void)value, (void)param;
    may_send = 0;
}

static void uart_output(avr_irq_t *irq, uint32_t value, void *param)
{
    uint8_t out[2];
    unsigned n = on_the_wire(&to_host, (uint8_t)value, out);
    (void)irq, (void)param;
    if (n > 0 && write(master, out, n) < 0 && errno != EAGAIN && errno != EIO) {
        perror("pty");
        exit(1);
    }
}

/* A byte is shifted in, most significant bit first, and as many bits fall out of the last register into MISO. */
static void spi_output(avr_irq_t *irq, uint32_t value, void *param)
{
    uint8_t out = chain[n_registers - 1u];
    (void)irq, (void)param;
    memmove(chain + 1, chain, n_registers - 1u);
    chain[0] = (uint8_t)value;
    avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_SPI_GETIRQ(0), SPI_IRQ_INPUT), out);
}

static void latch(avr_irq_t *irq, uint32_t value, void *param)
{
    avr_ioport_state_t port = {0};
    (void)irq, (void)param;
    if (!value)
        return;
    memcpy(latched, chain, n_registers);
    avr_ioctl(avr, AVR_IOCTL_IOPORT_GETSTATE('B'), &port);
    printf("latch %llu %02x ", (unsigned long long)avr->cycle, port.ddr);
    for (unsigned i = 0; i < 8u * n_registers; i++)
        putchar('0' + (latched[i / 8u] >> (i % 8u) & 1));
    putchar('\n');
    fflush(stdout);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void hear_host(void)
{
    uint8_t bytes[256], out[2];
    ssize_t n = read(master, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        unsigned many = on_the_wire(&to_chip, bytes[i], out);
        for (unsigned k = 0; k < many; k++) {
            if ((queue_tail + 1u) % QUEUE == queue_head)
                break; /* full: lost, as on a wire without flow control */
            queue[queue_tail] = out[k];
            queue_tail = (queue_tail + 1u) % QUEUE;
        }
    }
    pump();
}

static int open_pty(void)
{
    struct termios raw;
    int slave;
    master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (master < 0 || grantpt(master) || unlockpt(master))
        return -1;
    slave = open(ptsname(master), O_RDWR | O_NOCTTY); /* stays open: otherwise the master reads as hung up */
    if (slave < 0 || tcgetattr(slave, &raw))
        return -1;
    cfmakeraw(&raw);
    return tcsetattr(slave, TCSANOW, &raw);
}

static void connect_pins(void)
{
    uint32_t flags = 0; /* neither lines on the console nor sleeps while polled */
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT), uart_output, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XON), uart_xon, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XOFF), uart_xoff, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_SPI_GETIRQ(0), SPI_IRQ_OUTPUT), spi_output, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_IOPORT_GETIRQ('B'), (int)latch_pin), latch, NULL);
}

static void (*core_reset)(avr_t *chip);

static void reset(avr_t *chip)
{
    if (core_reset)
        core_reset(chip);
    printf("reset %llu\n", (unsigned long long)chip->cycle);
    fflush(stdout);
    may_send = 1;
}

int main(int argc, char **argv)
{
    elf_firmware_t firmware = {0};
    avr_eeprom_desc_t serial;
    uint32_t number;
    double began_s;
    avr_cycle_count_t next = SLICE;

    if (argc != 7 || elf_read_firmware(argv[1], &firmware)) {
        fprintf(stderr, "use: chip FIRMWARE.elf MCU REGISTERS SERIAL NOISE_PERCENT SEED\n");
        return 2;
    }
    n_registers = (unsigned)atoi(argv[3]);
    latch_pin = strcmp(argv[2], "atmega328p") == 0 ? 2 : 4;
    if (n_registers < 1 || n_registers > MAX_REGISTERS || open_pty()) {
        fprintf(stderr, "chip: 1 to %u registers, and a pty\n", MAX_REGISTERS);
        return 2;
    }
    to_chip.percent = to_host.percent = (unsigned)atoi(argv[5]);
    to_chip.state = 2u * (uint64_t)atoi(argv[6]) + 1u;
    to_host.state = to_chip.state + 1u;
    begin_frame(&to_chip);
    begin_frame(&to_host);

    avr = avr_make_mcu_by_name(argv[2]);
    if (!avr) {
        fprintf(stderr, "chip: libsimavr knows no %s\n", argv[2]);
        return 2;
    }
    avr_init(avr);
    avr->frequency = F_CPU;
    avr_load_firmware(avr, &firmware);
    avr->frequency = F_CPU;
    avr->log = LOG_ERROR;
    number = (uint32_t)strtoul(argv[4], NULL, 0);
    serial = (avr_eeprom_desc_t){.ee = (uint8_t *)&number, .offset = 0, .size = 4}; /* hosts are little-endian here */
    avr_ioctl(avr, AVR_IOCTL_EEPROM_SET, &serial);
    connect_pins();
    core_reset = avr->reset;
    avr->reset = reset;
    printf("pty %s\n", ptsname(master));
    fflush(stdout);

    began_s = now_s();
    for (;;) {
        struct pollfd ends = {.fd = STDIN_FILENO, .events = POLLIN};
        double ahead_s;
        while (avr->cycle < next) {
            int state = avr_run(avr);
            if (state == cpu_Done || state == cpu_Crashed) {
                fprintf(stderr, "chip: the firmware crashed at cycle %llu\n", (unsigned long long)avr->cycle);
                return 1;
            }
        }
        next += SLICE;
        hear_host();
        if (poll(&ends, 1, 0) > 0 && ends.revents)
            return 0;
        ahead_s = (double)avr->cycle / (double)F_CPU - (now_s() - began_s);
        if (ahead_s > 0)
            usleep((useconds_t)(1e6 * ahead_s));
        else /* what was lost on a busy machine is not made up for: the chip would race through its timeouts */
            began_s -= ahead_s;
    }
}
