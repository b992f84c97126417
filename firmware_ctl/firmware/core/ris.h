/* The controller: takes bytes from the host, sends replies and latches patterns. It has no I/O, clock or heap itself. */
#ifndef RIS_RIS_H
#define RIS_RIS_H

#include <stdbool.h>
#include <stdint.h>

#include "../hal.h"
#include "cobs.h"
#include "codebook.h"
#include "protocol.h"
#include "schedule.h"

/* Largest pattern in bytes; set it when building for a controller with little memory. */
#ifndef RIS_PATTERN_MAX
#define RIS_PATTERN_MAX 24576u /* 256 × 256 elements of 3 bit */
#endif
/* Largest number of bytes of a codebook in one frame. */
#ifndef RIS_CHUNK_MAX
#define RIS_CHUNK_MAX 128u
#endif

#define RIS_PAYLOAD_MAX (6u + (RIS_PATTERN_MAX > RIS_CHUNK_MAX ? RIS_PATTERN_MAX : RIS_CHUNK_MAX))
#define RIS_REQUEST_OVERHEAD 6u /* version, sequence number, command, CRC-16 */
#define RIS_REPLY_OVERHEAD 7u   /* … and flags */
#define RIS_REPLAY_MAX 8u       /* largest payload of a reply that is stored */

struct ris_config {
    uint16_t rows;
    uint16_t columns;
    uint8_t phase_bits; /* 1 to 3 */
    uint8_t reset_cause;
    uint32_t serial;
    uint16_t input_bytes; /* number of bytes that the hardware can receive while a request is served */
};

struct ris {
    struct ris_config config;
    struct hal hal;
    uint16_t pattern_bytes;
    uint32_t n_bits;
    struct codebook book;
    struct schedule schedule;

    /* the line */
    bool overrun;
    size_t received;
    uint8_t rx[COBS_MAX(RIS_REQUEST_OVERHEAD + RIS_PAYLOAD_MAX)];
    uint8_t reply[RIS_REPLY_OVERHEAD + RIS_PAYLOAD_MAX];
    uint8_t tx[COBS_MAX(RIS_REPLY_OVERHEAD + RIS_PAYLOAD_MAX)];

    /* the request being served, and the last one that was */
    uint16_t seq;
    uint8_t command;
    bool in_session;
    uint32_t session;
    uint16_t last_seq;
    uint16_t last_crc;
    uint8_t last_kind;
    uint8_t last_size;
    uint8_t last_payload[RIS_REPLAY_MAX];

    /* the surface */
    bool waits;
    bool chain_bad;
    bool cleared;
    uint8_t waiting[RIS_PATTERN_MAX];
    uint8_t stream[RIS_PATTERN_MAX];
    uint8_t returned[RIS_PATTERN_MAX];

    uint32_t watchdog_us; /* 0: off */
    uint32_t heard_us;
    bool watching; /* bytes have arrived since the watchdog cleared the outputs */
};

/* Clear everything, also the outputs, and tell the host that the board has booted. `memory` has room for two banks of
 * `bank_bytes` for the codebook, then `schedule_bytes` for the schedule. Returns false for an impossible geometry. */
bool ris_init(struct ris *ris, const struct ris_config *config, const struct hal *hal, uint8_t *memory,
              uint32_t bank_bytes, uint32_t schedule_bytes, uint32_t now_us);

/* Take one byte from the host. If it ends a frame, the frame is answered before this function returns. */
void ris_feed(struct ris *ris, uint8_t byte, uint32_t now_us);

/* Check the watchdog and other deadlines; to be called at least every few milliseconds. */
void ris_poll(struct ris *ris, uint32_t now_us);

#endif
