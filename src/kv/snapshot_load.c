/* Loading: the table says what there is and is checked against itself and the file's length before anything is allocated;
 * then memory is taken or mapped, and all threads read and check the arrays. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/snapshot.h"
#include "kv/tail.h"
#include "memory/pages.h"
#include "runtime/structs.h"
#include "runtime/team.h"

/* Problems of reading that are no errno. */
enum { CUT_SHORT = -1, DAMAGED = -2, UNSOUND = -3 };

typedef struct loader {
    dp_runtime *runtime;
    const char *path; /* as messages show it */
    dp_load_options options;
    int file;
    dp_snapshot_header header;
    char *table;
    dp_snapshot_table parts;
    dp_sequence_config config;
    size_t n_heads, n_segments;
    dp_sequence *sequence;
    dp_section *sections;
    size_t n_sections;
    dp_ticket ticket;
} loader;

#define FAIL(l, status, format, ...)                                                                                   \
    dp_fail((l)->runtime, status, "dp_sequence_load: " format ": %s", __VA_ARGS__, (l)->path)
#define DAMAGE(l, what) FAIL(l, DP_ERR_DAMAGED, "%s", what)

/* 0, an errno or CUT_SHORT. */
static int read_at(int file, uint64_t offset, void *data, size_t bytes)
{
    char *p = data;
    while (bytes) {
        const ssize_t n = pread(file, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? errno : CUT_SHORT;
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Zeros only? 0, an errno, CUT_SHORT or DAMAGED. */
static int read_padding(int file, uint64_t offset, size_t bytes)
{
    static const char zeros[4096];
    char found[sizeof zeros];
    while (bytes) {
        const size_t n = bytes < sizeof found ? bytes : sizeof found;
        const int problem = read_at(file, offset, found, n);
        if (problem) return problem;
        if (memcmp(found, zeros, n) != 0) return DAMAGED;
        offset += n;
        bytes -= n;
    }
    return 0;
}

static dp_status report(const loader *l, const char *what, int problem)
{
    if (problem > 0) return FAIL(l, DP_ERR_SYSTEM, "cannot read the %s: %s", what, strerror(problem));
    return FAIL(l, DP_ERR_DAMAGED, "the %s %s", what,
                problem == CUT_SHORT ? "ends too early" : "is damaged: its checksum does not match");
}

/* ---- Header, table, note ---- */

static dp_status read_header(loader *l)
{
    dp_snapshot_header *const h = &l->header;
    struct stat status;
    if (fstat(l->file, &status)) return FAIL(l, DP_ERR_SYSTEM, "%s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return FAIL(l, DP_ERR_SYSTEM, "%s", "is not a regular file");
    const uint64_t file_bytes = (uint64_t)status.st_size;
    const size_t magic_bytes = file_bytes < sizeof h->magic ? (size_t)file_bytes : sizeof h->magic;
    const int problem = read_at(l->file, 0, h, file_bytes < sizeof *h ? (size_t)file_bytes : sizeof *h);
    if (problem) return report(l, "header", problem);
    if (memcmp(h->magic, DP_SNAPSHOT_MAGIC, magic_bytes) != 0 || !magic_bytes)
        return DAMAGE(l, "the file is no snapshot of libdoublep: it does not begin like one");
    if (file_bytes < sizeof *h)
        return FAIL(l, DP_ERR_DAMAGED, "the header is cut short at %zu bytes", (size_t)file_bytes);
    if (h->byte_order == __builtin_bswap32(DP_SNAPSHOT_BYTE_ORDER))
        return FAIL(l, DP_ERR_UNSUPPORTED, "%s", "the file comes from a machine of the other byte order");
    if (h->byte_order == DP_SNAPSHOT_BYTE_ORDER && h->version > DP_SNAPSHOT_VERSION)
        return FAIL(l, DP_ERR_UNSUPPORTED, "the file has format version %u, this library knows those up to %u",
                    h->version, DP_SNAPSHOT_VERSION);
    if (h->byte_order != DP_SNAPSHOT_BYTE_ORDER ||
        dp_snapshot_checksum(0, h, offsetof(dp_snapshot_header, checksum)) != h->checksum)
        return report(l, "header", DAMAGED);
    if (h->version < DP_SNAPSHOT_VERSION)
        return FAIL(l, DP_ERR_UNSUPPORTED, "the file has format version %u, this library reads %u", h->version,
                    DP_SNAPSHOT_VERSION);
    if (h->file_bytes != file_bytes)
        return FAIL(l, DP_ERR_DAMAGED, "the file has %llu bytes, not the %llu that it was written with",
                    (unsigned long long)file_bytes, (unsigned long long)h->file_bytes);
    if (h->table_bytes > file_bytes || h->note_bytes > file_bytes || h->zero[0] || h->zero[1] || h->zero[2])
        return DAMAGE(l, "the header's figures make no sense");
    return DP_OK;
}

static uint64_t table_offset(void)
{
    return sizeof(dp_snapshot_header);
}

static uint64_t note_offset(const loader *l)
{
    return table_offset() + dp_snapshot_round(l->header.table_bytes, DP_SNAPSHOT_ALIGN);
}

static uint64_t sections_offset(const loader *l)
{
    return note_offset(l) + dp_snapshot_round(l->header.note_bytes, DP_SNAPSHOT_ALIGN);
}

static int read_checked(const loader *l, uint64_t offset, char *data, size_t bytes, uint32_t checksum)
{
    int problem = read_at(l->file, offset, data, bytes);
    if (!problem && dp_snapshot_checksum(0, data, bytes) != checksum) problem = DAMAGED;
    const size_t padded = (size_t)dp_snapshot_round(bytes, DP_SNAPSHOT_ALIGN);
    return problem ? problem : read_padding(l->file, offset + bytes, padded - bytes);
}

static dp_status read_table(loader *l)
{
    const size_t bytes = (size_t)l->header.table_bytes;
    if (bytes < sizeof(uint32_t)) return DAMAGE(l, "the table is empty");
    l->table = dp_heap_resize(l->runtime, NULL, 0, bytes);
    if (!l->table) return dp_no_memory(l->runtime, "dp_sequence_load: no memory for a table of %zu bytes", bytes);
    const int problem = read_checked(l, table_offset(), l->table, bytes, l->header.table_checksum);
    return problem ? report(l, "table", problem) : DP_OK;
}

/* The note goes to the caller at the very end; here it is read in pieces to see that it is whole. */
static int check_note(const loader *l)
{
    char part[4096];
    uint32_t sum = 0;
    for (size_t at = 0; at < l->header.note_bytes;) {
        const size_t rest = (size_t)l->header.note_bytes - at, n = rest < sizeof part ? rest : sizeof part;
        const int problem = read_at(l->file, note_offset(l) + at, part, n);
        if (problem) return problem;
        sum = dp_snapshot_checksum(sum, part, n);
        at += n;
    }
    if (sum != l->header.note_checksum) return DAMAGED;
    const uint64_t end = note_offset(l) + l->header.note_bytes;
    return read_padding(l->file, end, (size_t)(sections_offset(l) - end));
}

/* ---- The sequence's shape ---- */

/* Settings that differ from those that the caller expects. */
static dp_status compare_config(const loader *l, const dp_sequence_config *expected)
{
#define FIELD(name, number)                                                                                            \
    {                                                                                                                  \
#name, offsetof(dp_sequence_config, name), number                                                              \
    }
    static const struct {
        const char *name;
        size_t offset;
        bool real;
    } fields[] = {FIELD(n_layers, false),
                  FIELD(n_query_heads, false),
                  FIELD(n_kv_heads, false),
                  FIELD(key_dim, false),
                  FIELD(value_dim, false),
                  FIELD(type, false),
                  FIELD(scale, true),
                  FIELD(sink, false),
                  FIELD(window, false),
                  FIELD(segment_tokens, false),
                  FIELD(tokens_per_cluster, false),
                  FIELD(pending_tokens, false),
                  FIELD(iterations, false),
                  FIELD(outlier_share, true),
                  FIELD(clustering, false),
                  FIELD(query_metric, true),
                  FIELD(query_origin, true),
                  FIELD(key_codes, false),
                  FIELD(cluster_growth, true),
                  FIELD(borrowed, false),
                  FIELD(softcap, true)};
#undef FIELD
    _Static_assert(sizeof fields / sizeof *fields == sizeof *expected / sizeof(uint32_t) - 1,
                   "every setting is compared");
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        uint32_t found, wanted;
        float real_found, real_wanted;
        memcpy(&found, (const char *)&l->config + fields[i].offset, sizeof found);
        memcpy(&wanted, (const char *)expected + fields[i].offset, sizeof wanted);
        if (found == wanted) continue;
        memcpy(&real_found, &found, sizeof found);
        memcpy(&real_wanted, &wanted, sizeof wanted);
        return FAIL(l, DP_ERR_INVALID, "%s is %g in the file, not %g as options->config says", fields[i].name,
                    fields[i].real ? (double)real_found : found, fields[i].real ? (double)real_wanted : wanted);
    }
    return DP_OK;
}

static dp_status read_config(loader *l, const dp_sequence_config *expected)
{
    const uint32_t config_bytes = dp_struct_size(l->table);
    dp_sequence_config_init(&l->config);
    if (config_bytes != sizeof l->config)
        return FAIL(l, DP_ERR_UNSUPPORTED, "%s", "the file has the settings of another version of this library");
    if (config_bytes > l->header.table_bytes || !DP_STRUCT_IN(&l->config, (const dp_sequence_config *)(void *)l->table))
        return DAMAGE(l, "the table's settings make no sense");
    if (expected) {
        const dp_status status = compare_config(l, expected);
        if (status) return status;
    }
    if (l->config.borrowed)
        return DAMAGE(l, "the table's settings make no sense: rows that a file holds are not borrowed");
    /* Before what depends on these numbers is allocated, the table must have room for what they announce. */
    const uint64_t n_heads = (uint64_t)l->config.n_layers * l->config.n_kv_heads;
    if (l->config.n_layers > l->header.table_bytes || n_heads > l->header.table_bytes / sizeof(dp_snapshot_head))
        return DAMAGE(l, "the table is too short for so many layers and KV heads");
    l->n_heads = (size_t)n_heads;
    l->parts = dp_snapshot_lay_table(config_bytes, l->config.n_layers, l->n_heads, 0, 0);
    if (l->parts.bytes > l->header.table_bytes)
        return DAMAGE(l, "the table is too short for so many layers and KV heads");
    const dp_snapshot_head *const heads = (const void *)(l->table + l->parts.heads);
    for (size_t i = 0; i < l->n_heads; i++) l->n_segments += heads[i].n_segments;
    if (l->n_segments > l->header.table_bytes / sizeof(dp_snapshot_segment))
        return DAMAGE(l, "the table is too short for so many segments");
    l->n_sections = 5 * l->n_heads + 2 * l->n_segments;
    l->parts = dp_snapshot_lay_table(config_bytes, l->config.n_layers, l->n_heads, l->n_segments, l->n_sections);
    return l->parts.bytes == l->header.table_bytes ? DP_OK
                                                   : DAMAGE(l, "the table has another length than what it lists");
}

/* Whether a head's numbers fit together; adds the bytes that its arrays have at least. */
static bool head_makes_sense(const dp_sequence *s, const dp_snapshot_layer *layer, const dp_snapshot_head *head,
                             const dp_snapshot_segment *segments, uint64_t *bytes)
{
    const dp_sequence_config *const c = &s->config;
    uint64_t rest = layer->n_tokens - (layer->n_tokens < c->sink ? layer->n_tokens : c->sink);
    for (uint32_t i = 0; i < head->n_segments; i++) {
        const dp_snapshot_segment *const g = &segments[i];
        if (!g->n_tokens || g->n_tokens > DP_MAX_SEGMENT_TOKENS || g->n_tokens > rest || !g->n_clusters ||
            g->n_clusters > g->room || g->room > g->n_tokens || g->zero)
            return false;
        rest -= g->n_tokens;
    }
    const bool queries = head->queries != DP_SNAPSHOT_NO_QUERIES;
    *bytes += layer->n_tokens * (s->format.key_bytes + s->format.value_bytes) +
              (queries ? s->format.key_dim * s->format.key_dim * sizeof(float) : 0);
    if (!queries ? head->n_queries != 0 : head->queries == DP_SNAPSHOT_SETTLED && !head->n_queries) return false;
    return head->queries <= DP_SNAPSHOT_SETTLED && !head->zero && !layer->zero && layer->dense <= 1 &&
           layer->n_tokens <= UINT32_MAX && (!head->n_segments || rest >= c->window);
}

/* Shape and memory of all but the segments' arrays. */
static bool shape_head(dp_sequence *s, dp_head *head, const dp_snapshot_layer *layer, const dp_snapshot_head *from,
                       const dp_snapshot_segment *segments)
{
    const dp_row_format *const f = &s->format;
    const size_t sink = layer->n_tokens < s->config.sink ? (size_t)layer->n_tokens : s->config.sink;
    if (sink && !dp_rows_resize(&head->sink, s->runtime, f, s->config.sink, dp_sequence_node(s, head->arena)))
        return false;
    uint64_t token = sink;
    if (from->n_segments) {
        head->segments = dp_heap_resize(s->runtime, NULL, 0, from->n_segments * sizeof *head->segments);
        if (!head->segments) return false;
        head->segments_capacity = from->n_segments;
    }
    for (uint32_t i = 0; i < from->n_segments; i++) {
        const dp_snapshot_segment *const g = &segments[i];
        dp_segment *const segment = &head->segments[i];
        *segment = dp_segment_shaped(f, token, g->n_tokens, g->room);
        segment->n_clusters = g->n_clusters;
        segment->n_panels = (g->n_clusters + DP_PANEL - 1) / DP_PANEL;
        head->n_panels += segment->n_panels;
        token += g->n_tokens;
    }
    const size_t tail = (size_t)(layer->n_tokens - token);
    if (tail && !dp_tail_reserve(s, head, tail)) return false;
    if (from->queries != DP_SNAPSHOT_NO_QUERIES && !dp_queries_reserve(&head->queries, s->runtime, f->key_dim))
        return false;
    head->sink.n = sink;
    head->tail.n = tail;
    head->clustered = token - sink;
    head->n_segments = from->n_segments;
    head->pending_limit = from->pending_limit;
    head->queries.n = from->n_queries;
    head->queries.settled = from->queries == DP_SNAPSHOT_SETTLED;
    return true;
}

static dp_status shape_sequence(loader *l)
{
    dp_sequence *const s = l->sequence;
    const dp_snapshot_layer *const layers = (const void *)(l->table + l->parts.layers);
    const dp_snapshot_head *const heads = (const void *)(l->table + l->parts.heads);
    const dp_snapshot_segment *segments = (const void *)(l->table + l->parts.segments);
    uint64_t bytes = 0;
    for (size_t i = 0; i < l->n_heads; segments += heads[i++].n_segments)
        if (!head_makes_sense(s, &layers[i / s->config.n_kv_heads], &heads[i], segments, &bytes) ||
            bytes > l->header.file_bytes)
            return FAIL(l, DP_ERR_DAMAGED, "the table's figures of layer %zu, KV head %zu make no sense",
                        i / s->config.n_kv_heads, i % s->config.n_kv_heads);
    segments = (const void *)(l->table + l->parts.segments);
    for (size_t i = 0; i < l->n_heads; segments += heads[i++].n_segments) {
        const dp_snapshot_layer *const layer = &layers[i / s->config.n_kv_heads];
        if (!shape_head(s, &s->heads[i], layer, &heads[i], segments))
            return dp_no_memory(l->runtime, "dp_sequence_load: no memory for layer %zu", i / s->config.n_kv_heads);
    }
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        s->layers[i].n_tokens = layers[i].n_tokens;
        s->layers[i].dense = layers[i].dense;
    }
    return DP_OK;
}

/* ---- Memory of the segments ---- */

/* The sections of a KV head's segments are neighbours: rows, index, rows, index, ... Maps them all. */
static bool map_segments(const loader *l, const dp_section *first, size_t n)
{
    dp_arena *const arena = l->sequence->arenas[l->sequence->heads[first->kv_head].arena];
    const dp_section *const last = &first[n - 1];
    const size_t bytes = (size_t)(last->offset - first->offset) + dp_arena_piece_bytes(last->segment->index_bytes);
    char *const base = dp_pages_map_file(l->file, (size_t)first->offset, bytes);
    if (!base) return false;
    if (!dp_arena_adopt(arena, base, bytes, n)) {
        dp_pages_unmap(base, bytes);
        return false;
    }
    for (size_t i = 1; i < n; i += 2) {
        first[i].segment->rows = base + (first[i - 1].offset - first->offset);
        first[i].segment->index = base + (first[i].offset - first->offset);
    }
    return true;
}

static bool allocate_segments(const loader *l, dp_section *first, size_t n)
{
    dp_arena *const arena = l->sequence->arenas[l->sequence->heads[first->kv_head].arena];
    for (size_t i = 1; i < n; i += 2) {
        dp_segment *const segment = first[i].segment;
        segment->rows = first[i - 1].data = dp_arena_alloc(arena, segment->row_bytes);
        segment->index = first[i].data = segment->rows ? dp_arena_alloc(arena, segment->index_bytes) : NULL;
        if (!segment->index) return false;
    }
    return true;
}

static dp_status place_segments(loader *l)
{
    size_t n;
    for (size_t i = 5 * l->n_heads; i < l->n_sections; i += n) {
        for (n = 0; i + n < l->n_sections && l->sections[i + n].kv_head == l->sections[i].kv_head;) n++;
        if (!(l->options.map ? map_segments(l, &l->sections[i], n) : allocate_segments(l, &l->sections[i], n)))
            return dp_no_memory(l->runtime, "dp_sequence_load: no memory for KV head %u", l->sections[i].kv_head);
    }
    return DP_OK;
}

/* ---- Arrays ---- */

/* Reads a section to where it belongs, or, where it is mapped, only to see that it is whole: a medium that fails is an
 * error here, and a signal where mapped memory is touched. */
static int read_section(const loader *l, const dp_section *s)
{
    char part[1 << 16];
    uint32_t sum = 0;
    for (size_t at = 0, n; at < s->bytes; at += n) {
        n = s->bytes - at < sizeof part ? s->bytes - at : sizeof part;
        char *const data = s->data ? s->data + at : part;
        const int problem = read_at(l->file, s->offset + at, data, n);
        if (problem) return problem;
        sum = dp_snapshot_checksum(sum, data, n);
    }
    return sum != s->checksum ? DAMAGED : read_padding(l->file, s->offset + s->bytes, s->padding);
}

static void read_worker(void *argument, int thread, int n_threads)
{
    (void)thread, (void)n_threads;
    loader *const l = argument;
    for (size_t i; (i = dp_ticket_take(&l->ticket)) < l->n_sections;) {
        dp_section *const s = &l->sections[i];
        if (s->data || l->options.verify) s->problem = read_section(l, s);
        if (!s->segment || s->problem) continue;
        dp_segment_bind(s->segment, &l->sequence->format, s->segment->rows, s->segment->index);
        if (l->options.verify && !dp_segment_is_sound(s->segment)) s->problem = UNSOUND;
    }
}

static dp_status read_sections(loader *l)
{
    const uint32_t *const checksums = (const void *)(l->table + l->parts.checksums);
    for (size_t i = 0; i < l->n_sections; i++) l->sections[i].checksum = checksums[i];
    dp_team_run(l->runtime, read_worker, l);
    for (size_t i = 0; i < l->n_sections; i++) {
        const dp_section *const s = &l->sections[i];
        if (!s->problem) continue;
        char what[64];
        snprintf(what, sizeof what, "array of %s (layer %u, KV head %u)", s->what, s->layer, s->kv_head);
        if (s->problem == UNSOUND) return FAIL(l, DP_ERR_DAMAGED, "the %s has numbers out of range", what);
        return report(l, what, s->problem);
    }
    return DP_OK;
}

/* ---- The whole ---- */

static dp_status load(loader *l, const dp_sequence_config *expected)
{
    dp_status status;
    if ((status = read_header(l)) || (status = read_table(l)) || (status = read_config(l, expected))) return status;
    const int problem = check_note(l);
    if (problem) return report(l, "note", problem);
    status = dp_sequence_create(l->runtime, &l->config, &l->sequence);
    if (status == DP_ERR_INVALID) {
        char why[DP_MESSAGE_SIZE];
        dp_last_error(l->runtime, why, sizeof why);
        return FAIL(l, DP_ERR_DAMAGED, "the table's settings make no sense: %.100s", why);
    }
    if (status) return dp_no_memory(l->runtime, "dp_sequence_load: no memory for %zu KV heads", l->n_heads);
    if ((status = shape_sequence(l))) return status;

    uint64_t end;
    l->sections = dp_heap_resize(l->runtime, NULL, 0, l->n_sections * sizeof *l->sections);
    if (!l->sections) return dp_no_memory(l->runtime, "dp_sequence_load: no memory for %zu arrays", l->n_sections);
    dp_snapshot_sections(l->sequence, sections_offset(l), l->sections, &end);
    if (end != l->header.file_bytes)
        return FAIL(l, DP_ERR_DAMAGED, "the table lists arrays up to byte %llu, the file has %llu",
                    (unsigned long long)end, (unsigned long long)l->header.file_bytes);
    if ((status = place_segments(l)) || (status = read_sections(l))) return status;

    const size_t wanted =
        l->options.note_size < l->header.note_bytes ? l->options.note_size : (size_t)l->header.note_bytes;
    const int unread = read_at(l->file, note_offset(l), l->options.note, wanted);
    return unread ? report(l, "note", unread) : DP_OK;
}

void dp_load_options_init(dp_load_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->verify = 1;
    options->map = 1;
}

dp_status dp_sequence_load(dp_runtime *rt, const char *path, const dp_load_options *options, dp_sequence **sequence)
{
    if (sequence) *sequence = NULL;
    if (!rt) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_load: runtime is NULL");
    if (!path || !*path || !sequence)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_load: %s",
                       sequence ? "path is NULL or empty" : "sequence is NULL");
    loader l = {.runtime = rt, .path = dp_snapshot_name(path)};
    dp_sequence_config expected;
    dp_load_options_init(&l.options);
    dp_sequence_config_init(&expected);
    if (options && !DP_STRUCT_IN(&l.options, options))
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_sequence_load: the struct_size of options is wrong; call dp_load_options_init first");
    if (l.options.config && !DP_STRUCT_IN(&expected, l.options.config))
        return dp_fail(
            rt, DP_ERR_INVALID,
            "dp_sequence_load: the struct_size of options->config is wrong; call dp_sequence_config_init first");
    if (l.options.note_size && !l.options.note)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_load: options->note is NULL, but note_size is not 0");

    l.file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (l.file < 0) return FAIL(&l, DP_ERR_SYSTEM, "%s", strerror(errno));
    const dp_status status = load(&l, l.options.config ? &expected : NULL);
    close(l.file);
    dp_heap_resize(rt, l.table, l.table ? (size_t)l.header.table_bytes : 0, 0);
    dp_heap_resize(rt, l.sections, l.sections ? l.n_sections * sizeof *l.sections : 0, 0);
    if (status) {
        dp_sequence_free(l.sequence);
        return status;
    }
    if (l.options.note_bytes) *l.options.note_bytes = (size_t)l.header.note_bytes;
    *sequence = l.sequence;
    return DP_OK;
}
