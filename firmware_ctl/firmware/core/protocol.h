/* The numbers of the protocol; README.md says what they mean. */
#ifndef RIS_PROTOCOL_H
#define RIS_PROTOCOL_H

#include <stdint.h>

#define RIS_PROTOCOL 1
#define RIS_VERSION_MAJOR 1
#define RIS_VERSION_MINOR 2
#define RIS_VERSION_PATCH 0

enum ris_command {
    RIS_HELLO = 0x01,
    RIS_APPLY = 0x02,
    RIS_QUEUE = 0x03,
    RIS_TRIGGER = 0x04,
    RIS_INDEX = 0x05,
    RIS_BOOK_BEGIN = 0x06,
    RIS_BOOK_CHUNK = 0x07,
    RIS_BOOK_END = 0x08,
    RIS_BOOK_ABORT = 0x09,
    RIS_READBACK = 0x0A,
    RIS_TIME = 0x0B,
    RIS_WATCHDOG = 0x0C,
    RIS_RESET = 0x0D,
    RIS_SCHEDULE = 0x0E,
};

/* Kinds of reply: the command with one of the first two in its upper bits, or one of the last two. */
#define RIS_DONE 0x80u
#define RIS_QUEUED 0xC0u
#define RIS_BOOTED 0xFEu
#define RIS_ERROR 0xFFu

enum ris_flag {
    RIS_FLAG_WAITING = 0x01,   /* a queued pattern waits for TRIGGER */
    RIS_FLAG_UPLOADING = 0x02, /* a codebook is being uploaded */
    RIS_FLAG_CLEARED = 0x04,   /* the watchdog cleared the outputs since HELLO */
    RIS_FLAG_SCHEDULED = 0x08, /* patterns wait for their times */
};

enum ris_error {
    RIS_OK = 0,
    RIS_BAD_FRAME = 1,    /* not valid COBS, or shorter than any frame */
    RIS_BAD_CRC = 2,
    RIS_TOO_LONG = 3,
    RIS_BAD_PROTOCOL = 4, /* a frame of another protocol version */
    RIS_UNKNOWN = 5,
    RIS_BAD_LENGTH = 6,   /* wrong length of the payload */
    RIS_NO_SESSION = 7,   /* HELLO is needed first: the board has received none since it booted */
    RIS_STALE = 8,        /* the sequence number is older than the last one, or was used for another request */
    RIS_BAD_PATTERN = 9,  /* bits beyond the last element are set */
    RIS_NOTHING_WAITS = 10,
    RIS_BAD_INDEX = 11,
    RIS_BAD_COUNT = 12,
    RIS_NO_UPLOAD = 13,   /* the upload was not begun, or was aborted, refused or timed out */
    RIS_BAD_OFFSET = 14,
    RIS_BAD_CONTENT = 15, /* wrong CRC-32 of the codebook */
    RIS_BAD_CHAIN = 16,   /* the shift registers did not return the bits that were sent: nothing was latched */
    RIS_BAD_VALUE = 17,
    RIS_TOO_LATE = 18,    /* the time of a pattern has passed, or is before that of the pattern ahead of it */
    RIS_SCHEDULED = 19,   /* a pattern waits in the chain for its time, so that the outputs cannot be read */
};

#endif
