/* Saving: checksums of all arrays by all threads, then one after the other into a file that takes the old one's place. */
#include <string.h>

#include "kv/snapshot.h"
#include "runtime/replace.h"
#include "runtime/team.h"

typedef struct save_job {
    dp_section *sections;
    size_t n;
    dp_ticket ticket;
} save_job;

static void checksum_worker(void *argument, int thread, int n_threads)
{
    (void)thread, (void)n_threads;
    save_job *const job = argument;
    for (size_t i; (i = dp_ticket_take(&job->ticket)) < job->n;) {
        dp_section *const s = &job->sections[i];
        s->checksum = dp_snapshot_checksum(0, s->data, s->bytes);
    }
}

/* All of the table but the checksums. */
static void describe(const dp_sequence *s, const dp_snapshot_table *t, char *table)
{
    dp_snapshot_layer *const layers = (void *)(table + t->layers);
    dp_snapshot_head *const heads = (void *)(table + t->heads);
    dp_snapshot_segment *segment = (void *)(table + t->segments);
    memcpy(table, &s->config, sizeof s->config);
    for (uint32_t l = 0; l < s->config.n_layers; l++) {
        layers[l] = (dp_snapshot_layer){.n_tokens = s->layers[l].n_tokens, .dense = s->layers[l].dense};
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
            const dp_head *const head = &s->layers[l].heads[h];
            const dp_queries *const q = &head->queries;
            heads[(size_t)l * s->config.n_kv_heads + h] =
                (dp_snapshot_head){.n_queries = q->n,
                                   .queries = q->settled  ? DP_SNAPSHOT_SETTLED
                                              : q->vector ? DP_SNAPSHOT_QUERY_SUMS
                                                          : DP_SNAPSHOT_NO_QUERIES,
                                   .n_segments = head->n_segments,
                                   .pending_limit = head->pending_limit};
            for (uint32_t i = 0; i < head->n_segments; i++, segment++) {
                const dp_segment *const from = &head->segments[i];
                *segment = (dp_snapshot_segment){
                    .n_tokens = from->n_tokens, .n_clusters = from->n_clusters, .room = from->room};
            }
        }
    }
}

static size_t count_segments(const dp_sequence *s)
{
    size_t n = 0;
    for (size_t i = 0; i < (size_t)s->config.n_layers * s->config.n_kv_heads; i++) n += s->heads[i].n_segments;
    return n;
}

/* What is to be written before the sections. */
typedef struct preamble {
    dp_snapshot_header header;
    char *table;
    const void *note;
} preamble;

static int write_all(const dp_replacement *r, const preamble *p, const dp_section *sections, size_t n)
{
    const dp_snapshot_header *const h = &p->header;
    const uint64_t table = sizeof *h, note = table + dp_snapshot_round(h->table_bytes, DP_SNAPSHOT_ALIGN);
    int error = dp_replace_write(r, 0, h, sizeof *h);
    if (!error) error = dp_replace_write(r, table, p->table, (size_t)h->table_bytes);
    if (!error) error = dp_replace_write(r, note, p->note, (size_t)h->note_bytes);
    for (size_t i = 0; i < n && !error; i++)
        error = dp_replace_write(r, sections[i].offset, sections[i].data, sections[i].bytes);
    return error;
}

static dp_status write_file(const dp_sequence *s, const char *path, const preamble *p, const dp_section *sections,
                            size_t n)
{
    dp_replacement replacement;
    const char *doing = "create a file beside";
    int error = dp_replace_begin(&replacement, path);
    if (!error) {
        doing = "write";
        error = write_all(&replacement, p, sections, n);
    }
    if (!error) {
        doing = "complete";
        error = dp_replace_finish(&replacement, p->header.file_bytes);
    }
    if (!error) return DP_OK;
    dp_replace_give_up(&replacement);
    return dp_fail(s->runtime, DP_ERR_SYSTEM, "dp_sequence_save: cannot %s %s: %s", doing, dp_snapshot_name(path),
                   strerror(error));
}

dp_status dp_sequence_save(const dp_sequence *s, const char *path, const void *note, size_t note_bytes)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_save: sequence is NULL");
    dp_runtime *const rt = s->runtime;
    if (!path || !*path) return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_save: path is NULL or empty");
    if (s->format.borrowed)
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_sequence_save: the caller keeps the rows of this sequence, there are none to save");
    if ((!note && note_bytes) || note_bytes > SIZE_MAX / 4)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_save: note is NULL, or too long at %zu bytes", note_bytes);

    uint64_t end;
    const size_t n = dp_snapshot_sections(s, 0, NULL, &end);
    const dp_snapshot_table t =
        dp_snapshot_lay_table(s->config.struct_size, s->config.n_layers,
                              (size_t)s->config.n_layers * s->config.n_kv_heads, count_segments(s), n);
    save_job job = {.sections = dp_heap_resize(rt, NULL, 0, n * sizeof *job.sections), .n = n};
    preamble p = {.header = {.magic = DP_SNAPSHOT_MAGIC,
                             .byte_order = DP_SNAPSHOT_BYTE_ORDER,
                             .version = DP_SNAPSHOT_VERSION,
                             .table_bytes = t.bytes,
                             .note_bytes = note_bytes},
                  .table = dp_heap_resize(rt, NULL, 0, t.bytes),
                  .note = note};
    dp_status status;
    if (!job.sections || !p.table) {
        status = dp_no_memory(rt, "dp_sequence_save: no memory for the tables of %zu arrays", n);
    } else {
        const uint64_t before = sizeof p.header + dp_snapshot_round(t.bytes, DP_SNAPSHOT_ALIGN) +
                                dp_snapshot_round(note_bytes, DP_SNAPSHOT_ALIGN);
        dp_snapshot_sections(s, before, job.sections, &p.header.file_bytes);
        dp_team_run(rt, checksum_worker, &job);
        describe(s, &t, p.table);
        uint32_t *const checksums = (void *)(p.table + t.checksums);
        for (size_t i = 0; i < n; i++) checksums[i] = job.sections[i].checksum;
        p.header.table_checksum = dp_snapshot_checksum(0, p.table, t.bytes);
        p.header.note_checksum = dp_snapshot_checksum(0, note, note_bytes);
        p.header.checksum = dp_snapshot_checksum(0, &p.header, offsetof(dp_snapshot_header, checksum));
        status = write_file(s, path, &p, job.sections, n);
    }
    dp_heap_resize(rt, job.sections, job.sections ? n * sizeof *job.sections : 0, 0);
    dp_heap_resize(rt, p.table, p.table ? t.bytes : 0, 0);
    return status;
}
