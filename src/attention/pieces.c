/* Work lists: runs of rows (pieces) and the items they are cut into. */
#include "attention/step.h"

static size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* Rows per item: 128 KiB take a core some ten microseconds, so items even out the heads' different work and cost little
 * to hand out and to merge (dense at 128K tokens: a tenth of the time with 64 KiB). Long lists get longer items, so that
 * the partial results stay few (dense at 128K tokens, two threads: 20.7 ms, with 128 items a list 21.7). */
enum { ITEM_BYTES = 128 << 10, ITEMS_PER_LIST = 64 };

/* Estimated clusters per item. Items end with a segment where they can: the slope of a segment, as many rows as a hundred
 * clusters, is added for each item that has clusters of it. */
enum { FEWEST_ESTIMATED = 128, MOST_ESTIMATED = 512 };

static size_t even_tokens(const dp_step *step)
{
    return ITEM_BYTES / (step->sequence->format.key_bytes + step->sequence->format.value_bytes);
}

/* Most items of a list of so many tokens: all but the last have even_tokens and a part in ITEMS_PER_LIST, or more. */
static size_t most_items(const dp_step *step, size_t tokens)
{
    const size_t even = tokens / even_tokens(step);
    return (even < ITEMS_PER_LIST ? even : ITEMS_PER_LIST) + 1;
}

/* Pieces of a head whose every row is read. */
static size_t whole_pieces(const dp_step *step, const dp_head *head)
{
    size_t n = ceil_div(head->sink.n, DP_PIECE_ROWS) + ceil_div(head->tail.n, DP_PIECE_ROWS) + step->n_queries + 2;
    for (uint32_t s = 0; s < head->n_segments; s++)
        n += head->segments[s].n_clusters + 1 + head->segments[s].n_tokens / DP_PIECE_ROWS;
    return n;
}

/* Pieces beyond these, for single tokens of scanned clusters: every other token at worst. Of long contexts that many would
 * be 2 GB of work memory at 1M tokens on 64 threads, and one in 8 is more than twice what the default settings read. */
static size_t single_pieces(const dp_step *step, const dp_head *head)
{
    if (!step->sequence->format.has_codes) return 0;
    const size_t half = head->clustered / 2, most = head->clustered / 8 + 4096;
    return half < most ? half : most;
}

size_t dp_pieces_capacity(const dp_step *step, const dp_head *head)
{
    return whole_pieces(step, head) + single_pieces(step, head);
}

/* Tokens that are in no cluster: sink, tail, stale segments. */
static size_t exact_tokens(const dp_step *step, const dp_head *head)
{
    return (size_t)(step->layer->n_tokens - head->clustered);
}

size_t dp_items_capacity(const dp_step *step, const dp_head *head)
{
    return most_items(step, exact_tokens(step, head)) + most_items(step, head->clustered) +
           head->n_panels * DP_PANEL / FEWEST_ESTIMATED + 1;
}

static void add_piece(dp_head_step *head, dp_run run, size_t n, size_t first_row)
{
    head->pieces[head->n_pieces++] = (dp_piece){.run = run, .n = (uint32_t)n, .first_row = (uint32_t)first_row};
}

/* Adds the n rows of a run as pieces. */
static void add_run(const dp_row_format *f, dp_head_step *head, dp_run run, size_t n)
{
    for (size_t i = 0; i < n; i += DP_PIECE_ROWS)
        add_piece(head, dp_run_from(run, f, i), n - i < DP_PIECE_ROWS ? n - i : DP_PIECE_ROWS, 0);
}

/* Adds rows in token order. The call's own tokens after the first are not seen by the queries before them: each is a
 * piece of its own, so that no query row ever touches a row it must not see (a masked NaN would still be a NaN). */
static void add_ordered(const dp_step *step, dp_head_step *head, const dp_rows *rows, uint64_t first_token)
{
    const dp_row_format *const f = &step->sequence->format;
    const dp_run run = dp_rows_run(rows, first_token);
    const uint64_t seen_by_all = step->layer->n_tokens - step->n_queries + 1; /* tokens before this number */
    size_t n = 0;
    if (first_token < seen_by_all)
        n = seen_by_all - first_token < rows->n ? (size_t)(seen_by_all - first_token) : rows->n;
    add_run(f, head, run, n);
    for (size_t i = n; i < rows->n; i++) {
        const size_t query = (size_t)(first_token + i - seen_by_all + 1);
        add_piece(head, dp_run_from(run, f, i), 1, query * step->sequence->group);
    }
}

/* Cuts the pieces from number `first` on into items. */
static void cut_items(const dp_step *step, dp_head_step *head, size_t first)
{
    size_t all = 0, tokens = 0, start = first;
    for (size_t i = first; i < head->n_pieces; i++) all += head->pieces[i].n;
    const size_t even = even_tokens(step), part = ceil_div(all, ITEMS_PER_LIST), enough = even > part ? even : part;
    for (size_t i = first; i < head->n_pieces; i++) {
        tokens += head->pieces[i].n;
        if (tokens < enough && i + 1 < head->n_pieces) continue;
        head->items[head->n_items++] = (dp_item){.first = (uint32_t)start, .last = (uint32_t)i + 1};
        start = i + 1;
        tokens = 0;
    }
}

static void add_estimated(dp_head_step *head, uint32_t first, uint32_t last, uint32_t segment)
{
    head->items[head->n_items++] = (dp_item){.first = first, .last = last, .segment = segment, .estimated = true};
}

/* Cuts the estimated clusters into items. */
static void cut_estimated(dp_head_step *head)
{
    uint32_t start = 0, segment = 0; /* of the item */
    for (uint32_t s = 0; s < head->head->n_segments; s++) {
        const uint32_t end = head->estimates[s + 1].first;
        if (start == head->estimates[s].first) segment = s;
        for (; end - start >= MOST_ESTIMATED; start += MOST_ESTIMATED, segment = s)
            add_estimated(head, start, start + MOST_ESTIMATED, segment);
        if (end == start || (end - start < FEWEST_ESTIMATED && end < head->n_estimated)) continue;
        add_estimated(head, start, end, segment);
        start = end;
    }
}

void dp_pieces_exact(const dp_step *step, dp_head_step *h)
{
    const dp_row_format *const f = &step->sequence->format;
    h->n_pieces = h->n_items = h->n_estimated = 0;
    add_ordered(step, h, &h->head->sink, 0);
    for (uint32_t s = 0; s < h->head->n_segments && h->head->n_stale; s++)
        if (dp_segment_stale(&h->head->segments[s]))
            add_run(f, h, dp_run_in_order(h->head->segments[s].first_token), h->head->segments[s].n_tokens);
    add_ordered(step, h, &h->head->tail, step->layer->n_tokens - h->head->tail.n);
    cut_items(step, h, 0);
    h->n_exact_items = h->n_items;
    h->counts = (dp_head_counts){.tokens_exact = exact_tokens(step, h->head)};
    h->counts.bytes_rows = h->counts.tokens_exact * (f->key_bytes + f->value_bytes);
}

static void add_cluster(const dp_row_format *f, dp_head_step *h, const dp_segment *segment, uint32_t cluster)
{
    add_run(f, h, dp_segment_run(segment, f, cluster), dp_segment_size(segment, cluster));
}

void dp_pieces_all(const dp_step *step, dp_head_step *h)
{
    const dp_row_format *const f = &step->sequence->format;
    const size_t first = h->n_pieces;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        if (dp_segment_stale(segment)) continue;
        add_run(f, h, dp_segment_run(segment, f, 0), segment->n_tokens);
    }
    cut_items(step, h, first);
    h->counts.tokens_exact += h->head->clustered;
    h->counts.bytes_rows += h->head->clustered * (f->key_bytes + f->value_bytes);
}

/* The tokens of a scanned cluster that are to be read; returns how many. */
static uint32_t add_wanted(const dp_row_format *f, dp_head_step *h, const dp_segment *segment, uint32_t cluster,
                           const uint8_t *wanted)
{
    const uint32_t n = dp_segment_size(segment, cluster);
    uint32_t all = 0;
    for (uint32_t i = (uint32_t)dp_next_mark(wanted, 0, n); i < n; i = (uint32_t)dp_next_mark(wanted, i, n)) {
        uint32_t length = 1;
        while (i + length < n && wanted[i + length]) length++;
        add_run(f, h, dp_run_from(dp_segment_run(segment, f, cluster), f, i), length);
        all += length;
        i += length;
    }
    return all;
}

/* What is read of a cluster that is refined or scanned; returns whether its mean value stands for the rest. Where single
 * tokens might take more than `room` pieces, the cluster is read as a whole. */
static bool add_refined(const dp_row_format *f, dp_head_step *h, const dp_segment *segment, uint32_t cluster,
                        uint8_t flags, const uint8_t *wanted, size_t room)
{
    const uint32_t size = dp_segment_size(segment, cluster);
    uint32_t read = size;
    if (flags & SELECT_REFINE || h->n_pieces + size / 2 + 1 > room)
        add_cluster(f, h, segment, cluster);
    else
        read = add_wanted(f, h, segment, cluster, wanted);
    h->counts.clusters_refined++;
    h->counts.tokens_refined += read;
    return flags & SELECT_ESTIMATE && read < size;
}

/* Lists what is read of a segment's clusters that are refined (bits: SELECT_REFINE) or only scanned (SELECT_SCAN), and at
 * `estimated`, which has room for the segment's clusters, those of which something is left to be estimated; returns how many. */
static size_t add_read(const dp_step *step, dp_head_step *h, const dp_segment *segment, const uint8_t *flags,
                       const uint8_t *wanted, uint8_t bits, size_t room, uint16_t *estimated)
{
    const size_t n = step->kernels->list_flagged(flags, segment->n_clusters, bits | SELECT_REFINE, bits, estimated);
    size_t n_estimated = 0;
    for (size_t i = 0; i < n; i++) {
        const uint16_t c = estimated[i];
        if (add_refined(&step->sequence->format, h, segment, c, flags[c], wanted + segment->offset[c], room))
            estimated[n_estimated++] = c;
    }
    return n_estimated;
}

void dp_pieces_selected(const dp_step *step, dp_head_step *h)
{
    const dp_row_format *const f = &step->sequence->format;
    const size_t first = h->n_pieces, room = single_pieces(step, h->head);
    size_t position = 0, token = 0, n = 0; /* of the segment; estimated clusters */
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const uint8_t *const flags = h->flags + position, *const wanted = h->wanted + token;
        h->estimates[s] = (dp_estimates){.first = (uint32_t)n, .position = (uint32_t)position};
        n += step->kernels->list_flagged(flags, segment->n_clusters, SELECT_ESTIMATE | SELECT_READ, SELECT_ESTIMATE,
                                         h->estimated + n);
        n += add_read(step, h, segment, flags, wanted, SELECT_REFINE, room, h->estimated + n);
        n += add_read(step, h, segment, flags, wanted, SELECT_SCAN, room, h->estimated + n);
        if (dp_segment_stale(segment)) continue;
        token += segment->n_tokens;
        position += (size_t)segment->n_panels * DP_PANEL;
        /* panels; size, spread and limit; offsets; mean_key */
        h->counts.bytes_centroids +=
            segment->n_panels * (dp_panel_bytes(f->key_dim) + DP_PANEL * (3 * sizeof(uint16_t) + sizeof(uint32_t))) +
            f->key_dim * sizeof(float);
    }
    if (h->head->queries.settled) /* origin, and the factor's lower triangle */
        h->counts.bytes_centroids += f->key_dim * (f->key_dim + 3) / 2 * sizeof(float);
    for (size_t i = 0; i < h->n_scanned; i++)
        h->counts.bytes_codes += h->scanned[i].sign_groups * dp_sign_bytes(f) +
                                 h->scanned[i].code_groups * dp_code_bytes(f) + h->scanned[i].keys * f->key_bytes;
    h->n_estimated = n;
    h->estimates[h->head->n_segments] = (dp_estimates){.first = (uint32_t)n, .position = (uint32_t)position};
    cut_items(step, h, first);
    cut_estimated(h);
    h->counts.clusters_estimated = h->n_estimated;
    h->counts.bytes_means += h->n_estimated * (f->value_dim + sizeof(float));
    h->counts.bytes_rows += h->counts.tokens_refined * (f->key_bytes + f->value_bytes);
}
