/* The controller on an ATmega328P or ATmega1284P at 16 MHz.
 *
 * Host: USART 0, 8N1, BAUD (115200 is 2.1 % off, 500000 exact). Chain of 74HC595: SCK to SRCLK, MOSI to SER of the
 * first register, MISO to QH' of the last one, SS to RCLK. OE to ground, SRCLR to VCC. The serial number is the
 * first four bytes of the EEPROM, least significant first.
 */
#include <avr/eeprom.h>
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/wdt.h>
#include <util/atomic.h>

#include "../core/ris.h"

#define BAUD_TOL 3 /* 115200 from 16 MHz is 2.1 % off, which works */
#include <util/setbaud.h> /* needs F_CPU and BAUD */

#if defined(__AVR_ATmega328P__)
#define PIN_LATCH PB2
#define PIN_MOSI PB3
#define PIN_SCK PB5
#define USART0_RX_vect USART_RX_vect
#define USART0_UDRE_vect USART_UDRE_vect
#elif defined(__AVR_ATmega1284P__)
#define PIN_LATCH PB4
#define PIN_MOSI PB5
#define PIN_SCK PB7
#else
#error "the pins of this controller are not known: add them here"
#endif

#define RX_RING 256u /* uint8_t indices wrap by themselves */
#define TX_RING 64u

static struct ris ris;
static uint8_t memory[2u * RIS_BANK_BYTES + RIS_SCHEDULE_BYTES];

static volatile uint8_t rx_ring[RX_RING];
static volatile uint8_t rx_head, rx_tail;
static volatile uint8_t tx_ring[TX_RING];
static volatile uint8_t tx_head, tx_tail;
static volatile uint8_t latch_waits;
static volatile uint32_t latch_due_us;
static volatile uint32_t timer_overflows; /* 17 bits of it are needed: the clock wraps at 2^32 µs */

/* The reason why the board started. After a watchdog reset the watchdog is still on, so it is stopped first. */
static uint8_t reset_cause __attribute__((section(".noinit")));
void note_reset_cause(void) __attribute__((naked, used, section(".init3")));
void note_reset_cause(void)
{
    reset_cause = MCUSR;
    MCUSR = 0;
    wdt_disable();
}

ISR(USART0_RX_vect)
{
    uint8_t byte = UDR0;
    uint8_t next = (uint8_t)(rx_head + 1u);
    if (next != rx_tail) { /* otherwise the byte is lost, and the frame's CRC is wrong */
        rx_ring[rx_head] = byte;
        rx_head = next;
    }
}

ISR(USART0_UDRE_vect)
{
    if (tx_head == tx_tail) {
        UCSR0B &= (uint8_t)~_BV(UDRIE0);
        return;
    }
    UDR0 = tx_ring[tx_tail];
    tx_tail = (uint8_t)((tx_tail + 1u) % TX_RING);
}

ISR(TIMER1_OVF_vect)
{
    timer_overflows++;
}

/* The timer counts half microseconds. */
static uint32_t micros(void)
{
    uint32_t overflows;
    uint16_t count;
    ATOMIC_BLOCK(ATOMIC_RESTORESTATE)
    {
        count = TCNT1;
        overflows = timer_overflows;
        if ((TIFR1 & _BV(TOV1)) && count < 0x8000u) /* it overflowed while interrupts were off */
            overflows++;
    }
    return (overflows << 15) + (count >> 1);
}

/* With interrupts off: latch if the time has come. */
static void latch_if_due(void)
{
    if (latch_waits && micros() - latch_due_us < 0x80000000u) {
        PORTB |= _BV(PIN_LATCH);
        latch_waits = 0;
        TIMSK1 &= (uint8_t)~_BV(OCIE1A);
        PORTB &= (uint8_t)~_BV(PIN_LATCH);
    }
}

/* The timer has the lower half of the time, so that this happens every 33 ms until the time has come. */
ISR(TIMER1_COMPA_vect)
{
    latch_if_due();
}

static void hal_send(void *self, const uint8_t *data, size_t n)
{
    (void)self;
    while (n-- > 0) {
        uint8_t next = (uint8_t)((tx_head + 1u) % TX_RING);
        while (next == tx_tail)
            wdt_reset();
        tx_ring[tx_head] = *data++;
        tx_head = next;
        UCSR0B |= _BV(UDRIE0);
    }
}

static uint8_t spi(uint8_t byte)
{
    SPDR = byte;
    while (!(SPSR & _BV(SPIF)))
        ;
    return SPDR;
}

static void hal_exchange(void *self, const uint8_t *out, uint8_t *in, size_t n)
{
    (void)self;
    for (size_t i = 0; i < n; i++)
        in[i] = spi(out[i]);
}

static uint32_t hal_latch(void *self)
{
    uint32_t now_us;
    (void)self;
    ATOMIC_BLOCK(ATOMIC_RESTORESTATE)
    {
        PORTB |= _BV(PIN_LATCH);
        now_us = micros();
        PORTB &= (uint8_t)~_BV(PIN_LATCH);
    }
    return now_us;
}

/* The latches cannot be read, but the chain holds the same bits. Each byte that is shifted out is shifted in again, one
 * byte later, and one more byte brings all bits back to their places. */
static void hal_outputs(void *self, uint8_t *in, size_t n)
{
    uint8_t byte = 0;
    (void)self;
    for (size_t i = 0; i < n; i++) {
        byte = spi(byte);
        in[i] = byte;
    }
    (void)spi(byte);
}

static bool hal_latch_at(void *self, uint32_t time_us)
{
    bool early;
    (void)self;
    ATOMIC_BLOCK(ATOMIC_RESTORESTATE)
    {
        early = micros() - time_us >= 0x80000000u;
        if (early) {
            latch_due_us = time_us;
            latch_waits = 1;
            OCR1A = (uint16_t)(time_us << 1);
            TIFR1 = _BV(OCF1A);
            TIMSK1 |= _BV(OCIE1A);
            latch_if_due(); /* the time may have come before the comparison began */
        }
    }
    return early;
}

static bool hal_latch_waits(void *self)
{
    (void)self;
    return latch_waits;
}

static void hal_forget_latch(void *self)
{
    (void)self;
    ATOMIC_BLOCK(ATOMIC_RESTORESTATE)
    {
        latch_waits = 0;
        TIMSK1 &= (uint8_t)~_BV(OCIE1A);
    }
}

static uint32_t hal_clock_us(void *self)
{
    (void)self;
    return micros();
}

static void hal_reset(void *self)
{
    (void)self;
    while (tx_head != tx_tail)
        wdt_reset();
    wdt_enable(WDTO_15MS); /* the last two bytes need 0.2 ms */
    for (;;)
        ;
}

int main(void)
{
    const struct hal hal = {NULL, hal_send, hal_exchange, hal_latch,    hal_outputs,     hal_clock_us,
                            hal_latch_at, hal_latch_waits, hal_forget_latch, hal_reset};
    struct ris_config config = {.rows = RIS_ROWS, .columns = RIS_COLUMNS, .phase_bits = RIS_PHASE_BITS};
    config.reset_cause = reset_cause;
    config.input_bytes = RX_RING - 1u;
    config.serial = eeprom_read_dword((const uint32_t *)0);

    DDRB |= (uint8_t)(_BV(PIN_LATCH) | _BV(PIN_MOSI) | _BV(PIN_SCK));
    SPCR = _BV(SPE) | _BV(MSTR); /* mode 0, most significant bit first, F_CPU/4 */
    UBRR0 = UBRR_VALUE;
#if USE_2X
    UCSR0A = _BV(U2X0);
#endif
    UCSR0C = _BV(UCSZ01) | _BV(UCSZ00);
    UCSR0B = _BV(RXEN0) | _BV(TXEN0) | _BV(RXCIE0);
    TCCR1B = _BV(CS11); /* F_CPU/8 */
    TIMSK1 = _BV(TOIE1);
    wdt_enable(WDTO_500MS);
    sei();

    if (!ris_init(&ris, &config, &hal, memory, RIS_BANK_BYTES, RIS_SCHEDULE_BYTES, micros()))
        for (;;) /* the geometry of this build is impossible: the watchdog resets the board again and again */
            ;
    for (;;) {
        wdt_reset();
        while (rx_tail != rx_head) {
            uint8_t byte = rx_ring[rx_tail];
            rx_tail = (uint8_t)(rx_tail + 1u);
            ris_feed(&ris, byte, micros());
            wdt_reset();
        }
        ris_poll(&ris, micros());
    }
}
