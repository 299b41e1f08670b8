/* What saving and loading share: the order of sections, the table's layout, checksums. */
#include "kv/snapshot.h"

#include <string.h>
#include <zlib.h>

#include "memory/pages.h"

uint32_t dp_snapshot_checksum(uint32_t start, const void *data, size_t bytes)
{
    return bytes ? (uint32_t)crc32_z(start, data, bytes) : start;
}

dp_snapshot_table dp_snapshot_lay_table(uint32_t config_bytes, size_t n_layers, size_t n_heads, size_t n_segments,
                                        size_t n_sections)
{
    dp_snapshot_table t = {.layers = dp_snapshot_round(config_bytes, DP_SNAPSHOT_ALIGN)};
    t.heads = t.layers + n_layers * sizeof(dp_snapshot_layer);
    t.segments = t.heads + n_heads * sizeof(dp_snapshot_head);
    t.checksums = t.segments + n_segments * sizeof(dp_snapshot_segment);
    t.bytes = t.checksums + n_sections * sizeof(uint32_t);
    return t;
}

const char *dp_snapshot_name(const char *path)
{
    enum { MOST = 100 };
    const size_t n = strlen(path);
    return n > MOST ? path + n - MOST : path;
}

typedef struct list {
    dp_section *sections; /* NULL: counting */
    size_t n;
    uint64_t end;
    uint32_t layer, kv_head;
} list;

static dp_section *add(list *l, const char *what, void *data, size_t bytes, size_t whole)
{
    const uint64_t offset = l->end;
    l->end += dp_snapshot_round(whole, DP_SNAPSHOT_ALIGN);
    l->n++;
    if (!l->sections) return NULL;
    dp_section *const s = &l->sections[l->n - 1];
    *s = (dp_section){.data = data,
                      .bytes = bytes,
                      .padding = (size_t)(l->end - offset) - bytes,
                      .offset = offset,
                      .what = what,
                      .layer = l->layer,
                      .kv_head = l->kv_head};
    return s;
}

static void align(list *l)
{
    const uint64_t end = dp_snapshot_round(l->end, DP_FILE_PAGE);
    if (l->sections) l->sections[l->n - 1].padding += (size_t)(end - l->end);
    l->end = end;
}

static void add_rows(list *l, const dp_row_format *f, const dp_rows *rows, const char *keys, const char *values)
{
    add(l, keys, rows->k, rows->n * f->key_bytes, rows->n * f->key_bytes);
    add(l, values, rows->v, rows->n * f->value_bytes, rows->n * f->value_bytes);
}

static void add_segment(list *l, dp_segment *segment)
{
    add(l, "clustered rows", segment->rows, segment->row_bytes, dp_arena_piece_bytes(segment->row_bytes));
    /* All but the count of those who hold it, which is its last part. */
    dp_section *const s =
        add(l, "index", segment->index, segment->index_bytes - DP_HOLDERS_BYTES, dp_arena_piece_bytes(segment->index_bytes));
    if (s) s->segment = segment;
}

size_t dp_snapshot_sections(const dp_sequence *s, uint64_t offset, dp_section *sections, uint64_t *end)
{
    list l = {.sections = sections, .end = offset};
    const dp_row_format *const f = &s->format;
    for (l.kv_head = 0; l.kv_head < s->config.n_kv_heads; l.kv_head++)
        for (l.layer = 0; l.layer < s->config.n_layers; l.layer++) {
            const dp_head *const head = &s->layers[l.layer].heads[l.kv_head];
            const size_t queries = dp_queries_bytes(&head->queries, f->key_dim);
            add_rows(&l, f, &head->sink, "sink keys", "sink values");
            add_rows(&l, f, &head->tail, "tail keys", "tail values");
            add(&l, "queries", head->queries.vector, queries, queries);
        }
    for (l.kv_head = 0; l.kv_head < s->config.n_kv_heads; l.kv_head++) {
        bool first = true;
        for (l.layer = 0; l.layer < s->config.n_layers; l.layer++) {
            const dp_head *const head = &s->layers[l.layer].heads[l.kv_head];
            for (uint32_t i = 0; i < head->n_segments; i++, first = false) {
                if (first) align(&l);
                add_segment(&l, &head->segments[i]);
            }
        }
    }
    *end = l.end;
    return l.n;
}
