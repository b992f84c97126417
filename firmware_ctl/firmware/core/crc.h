/* The two checksums of the protocol; both can be computed over several pieces of data, one after the other. */
#ifndef RIS_CRC_H
#define RIS_CRC_H

#include <stddef.h>
#include <stdint.h>

#define CRC16_START 0xFFFFu

/* CRC-16/CCITT-FALSE: Python's binascii.crc_hqx(data, crc), started with CRC16_START. */
uint16_t crc16(uint16_t crc, const uint8_t *data, size_t n);

/* CRC-32 (IEEE 802.3): Python's zlib.crc32(data, crc), started with 0. */
uint32_t crc32(uint32_t crc, const uint8_t *data, size_t n);

#endif
