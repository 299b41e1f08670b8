/* The file format of snapshots. All numbers are as the machine has them in memory. A file is
 *     header, table, note      each padded with zeros to 64 bytes
 *     sections                 the arrays, in an order and of sizes that follow from the table; zeros between them
 * The table is the sequence's config, then dp_snapshot_layer [n_layers],
 * dp_snapshot_head [n_layers][n_kv_heads], dp_snapshot_segment for each of the heads' segments, and the CRC-32 of each
 * section. What follows from these (numbers of rows, first tokens) is not stored.
 * Sections: KV head by KV head, and for each layer by layer, the sink's keys and values, the tail's, and the queries;
 * then again, each segment's rows and index, byte for byte as in memory, each a piece of an arena. The segments of a KV
 * head, of all layers, begin at a multiple of DP_FILE_PAGE: they are mapped as one, and become an area of the head's arena.
 * CRC-32 is zlib's: it sees every burst of up to 32 wrong bits; the threads share the work, at 1 GB/s each; and zlib is on
 * every system. Faster sums would be one more library to depend on, for what a caller who trusts the file leaves out. */
#ifndef DP_KV_SNAPSHOT_H
#define DP_KV_SNAPSHOT_H

#include "kv/sequence.h"

#define DP_SNAPSHOT_MAGIC "DPSNAP\r\n" /* a transfer as text breaks it */
enum { DP_SNAPSHOT_BYTE_ORDER = 0x01020304, DP_SNAPSHOT_ALIGN = 64 };

typedef struct dp_snapshot_header {
    char magic[8];
    uint32_t byte_order, version;
    uint64_t file_bytes, table_bytes, note_bytes; /* without padding */
    uint32_t table_checksum, note_checksum;
    uint32_t zero[3];
    uint32_t checksum; /* of all before */
} dp_snapshot_header;

typedef struct dp_snapshot_layer {
    uint64_t n_tokens;
    uint32_t dense, zero;
} dp_snapshot_layer;

enum { DP_SNAPSHOT_NO_QUERIES, DP_SNAPSHOT_QUERY_SUMS, DP_SNAPSHOT_SETTLED };

typedef struct dp_snapshot_head {
    uint64_t n_queries;
    uint32_t queries; /* as above */
    uint32_t n_segments, pending_limit, zero;
} dp_snapshot_head;

typedef struct dp_snapshot_segment {
    uint32_t n_tokens, n_clusters, room, zero;
} dp_snapshot_segment;

/* An array in memory and in the file. */
typedef struct dp_section {
    char *data; /* NULL: to be mapped */
    size_t bytes, padding; /* zeros that follow */
    uint64_t offset;
    const char *what; /* in words */
    uint32_t layer, kv_head;
    dp_segment *segment; /* whose index it is, or NULL */
    uint32_t checksum;
    int problem; /* of reading it: an errno or one of the loader's */
} dp_section;

static inline uint64_t dp_snapshot_round(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

uint32_t dp_snapshot_checksum(uint32_t start, const void *data, size_t bytes);

/* Where the table's arrays begin, after a config of so many bytes. */
typedef struct dp_snapshot_table {
    size_t layers, heads, segments, checksums, bytes;
} dp_snapshot_table;
dp_snapshot_table dp_snapshot_lay_table(uint32_t config_bytes, size_t n_layers, size_t n_heads, size_t n_segments,
                                        size_t n_sections);

/* All sections of a sequence whose shape is complete, in the file's order, the first at `offset`. With sections = NULL only
 * counts them. *end: the file's length. */
size_t dp_snapshot_sections(const dp_sequence *sequence, uint64_t offset, dp_section *sections, uint64_t *end);

/* What of a path fits into a message: its end. */
const char *dp_snapshot_name(const char *path);

#endif
