/* Pairs of sequences, and the memory that one of each borrows. */
#include "borrowed.h"

#include <math.h>
#include <string.h>

size_t below(rng *r, size_t n)
{
    return (size_t)(rng_uniform(r) * (float)n);
}

store store_create(rng *r, const dp_row_format *f, size_t n_heads, size_t n, int layout, uint32_t block)
{
    const size_t element = dp_row_alignment(f->type), pad = layout == PACKED ? 0 : element * (1 + below(r, 37));
    const bool paged = layout >= PAGED, heads_first = layout == HEADS_FIRST || layout == PAGED_HEADS_FIRST;
    const size_t entries = paged ? (n + block - 1) / block : 1, blocks = paged ? entries + 3 : 1;
    const size_t tokens = paged ? block : n;
    store s = {0};
    dp_borrowed_rows_init(&s.rows);
    size_t stride[2][3], first[2] = {element * below(r, 9)}; /* of token, head, block */
    for (int i = 0; i < 2; i++) {
        const size_t row = (i ? f->value_bytes : f->key_bytes) + pad;
        stride[i][0] = heads_first ? row : row * n_heads + pad;
        stride[i][1] = heads_first ? row * tokens + pad : row;
        stride[i][2] = (heads_first ? stride[i][1] * n_heads : stride[i][0] * tokens) + pad;
        if (!i) first[1] = first[0] + stride[0][2] * blocks + element * below(r, 9);
    }
    s.bytes = first[1] + stride[1][2] * blocks;
    s.memory = malloc(s.bytes);
    s.copy = malloc(s.bytes);
    memset(s.memory, 0xff, s.bytes);
    memset(s.copy, 0xff, s.bytes);
    s.rows.k = s.memory + first[0];
    s.rows.v = s.memory + first[1];
    s.rows.n_tokens = n;
    if (paged) {
        s.table = malloc(blocks * sizeof *s.table);
        for (size_t i = 0; i < blocks; i++) {
            const size_t j = below(r, i + 1);
            s.table[i] = s.table[j];
            s.table[j] = (int32_t)i;
        }
        s.rows.block_table = s.table;
        s.rows.block_tokens = block;
        s.rows.n_blocks = (uint32_t)blocks;
    }
    if (layout != PACKED) { /* otherwise the strides that 0 stands for */
        s.rows.k_token_stride = stride[0][0], s.rows.v_token_stride = stride[1][0];
        s.rows.k_head_stride = stride[0][1], s.rows.v_head_stride = stride[1][1];
        if (paged) s.rows.k_block_stride = stride[0][2], s.rows.v_block_stride = stride[1][2];
    }
    return s;
}

void store_free(store *s)
{
    ck_assert_mem_eq(s->memory, s->copy, s->bytes);
    free(s->memory), free(s->copy), free(s->table);
}

void store_put(store *s, const dp_row_format *f, const dp_kernels *kernels, const cache *c, size_t t)
{
    const dp_borrowed_rows *const r = &s->rows;
    const size_t block = r->block_table ? (size_t)r->block_table[t / r->block_tokens] : 0;
    const size_t within = r->block_table ? t % r->block_tokens : t;
    for (size_t h = 0; h < c->n_kv_heads; h++)
        for (int i = 0; i < 2; i++) {
            const size_t row = i ? f->value_bytes : f->key_bytes, dim = i ? f->value_dim : f->key_dim;
            const size_t token_stride = i ? r->v_token_stride : r->k_token_stride;
            const size_t head_stride = i ? r->v_head_stride : r->k_head_stride;
            char *const to = (char *)(i ? r->v : r->k) + block * (i ? r->v_block_stride : r->k_block_stride) +
                             within * (token_stride ? token_stride : row * c->n_kv_heads) +
                             h * (head_stride ? head_stride : row);
            kernels->from_f32[f->type](to, (i ? c->v : c->k) + (t * c->n_kv_heads + h) * dim, dim);
            memcpy(s->copy + (to - s->memory), to, row);
        }
}

/* ---- A sequence over it, beside one with rows of its own ---- */

const dp_row_format *pair_format(const pair *p)
{
    return &p->own->format;
}

void pair_move(pair *p, int layout, uint32_t block)
{
    store next = store_create(&p->r, pair_format(p), p->c.n_kv_heads, p->c.n_tokens, layout, block);
    for (size_t t = 0; t < p->n; t++) store_put(&next, pair_format(p), &p->rt->kernels, &p->c, t);
    if (p->store.memory) store_free(&p->store);
    p->store = next;
    ck_assert_int_eq(dp_borrow(p->borrowing, 0, &p->store.rows), DP_OK);
}

void pair_begin(pair *p, uint32_t n_heads)
{
    p->n_heads = n_heads;
    ck_assert_int_eq(dp_sequence_create(p->rt, &p->config, &p->own), DP_OK);
    p->config.borrowed = 1;
    ck_assert_int_eq(dp_sequence_create(p->rt, &p->config, &p->borrowing), DP_OK);
}

pair pair_create(uint64_t seed, size_t n_tokens, uint32_t segment_tokens)
{
    pair p = {.r = {seed}};
    p.c = cache_create(&p.r, n_tokens, 2, 64, 64, DP_BF16);
    p.rt = runtime_with(2, DP_ISA_AUTO);
    p.config = sequence_config(&p.c, 4, DP_BF16);
    p.config.segment_tokens = segment_tokens;
    p.config.pending_tokens = 128;
    pair_begin(&p, 4);
    pair_move(&p, PAGED, 16);
    return p;
}

void pair_free(pair *p)
{
    dp_sequence_free(p->own);
    dp_sequence_free(p->borrowing);
    dp_runtime_free(p->rt);
    store_free(&p->store);
    cache_free(&p->c);
}

void pair_grow(pair *p, size_t n, size_t chunk)
{
    for (const size_t last = p->n + n; p->n < last;) {
        const size_t m = last - p->n < chunk ? last - p->n : chunk;
        append(p->own, &p->c, p->n, p->n + m, m);
        for (size_t t = p->n; t < p->n + m; t++) store_put(&p->store, pair_format(p), &p->rt->kernels, &p->c, t);
        ck_assert_int_eq(dp_append(p->borrowing, 0, m, NULL, 0, NULL, 0), DP_OK);
        p->n += m;
    }
}

void pair_build(pair *p)
{
    ck_assert_int_eq(dp_build_index(p->own, 0), DP_OK);
    ck_assert_int_eq(dp_build_index(p->borrowing, 0), DP_OK);
}

void pair_truncate(pair *p, size_t n)
{
    ck_assert_int_eq(dp_sequence_truncate(p->own, 0, n), DP_OK);
    ck_assert_int_eq(dp_sequence_truncate(p->borrowing, 0, n), DP_OK);
    p->n = n;
}

void check_same_reads(const pair *p)
{
    const size_t k_bytes = p->n * p->c.key_dim * sizeof(float), v_bytes = p->n * p->c.value_dim * sizeof(float);
    float *const k = malloc(2 * k_bytes), *const v = malloc(2 * v_bytes);
    for (uint32_t h = 0; h < p->c.n_kv_heads; h++) {
        float *const other_k = k + p->n * p->c.key_dim, *const other_v = v + p->n * p->c.value_dim;
        ck_assert_int_eq(dp_sequence_read(p->own, 0, h, 0, p->n, k, v), DP_OK);
        ck_assert_int_eq(dp_sequence_read(p->borrowing, 0, h, 0, p->n, other_k, other_v), DP_OK);
        ck_assert_mem_eq(k, other_k, k_bytes);
        ck_assert_mem_eq(v, other_v, v_bytes);
    }
    free(k), free(v);
}

bool check_same_bits(pair *p, size_t n, bool prefill, bool dense)
{
    const size_t rows = n * p->n_heads, dim = p->c.value_dim;
    float *const q = malloc(rows * p->c.key_dim * sizeof *q);
    float *const out = malloc(2 * rows * (dim + 1) * sizeof *out), *const lse = out + 2 * rows * dim;
    cache seen = p->c;
    seen.n_tokens = p->n;
    make_queries(&p->r, &seen, n, p->n_heads, q);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.min_context = dense ? UINT32_MAX : 0;
    params.epsilon = 0.2f * rng_uniform(&p->r);
    params.window = (uint32_t)below(&p->r, 200);
    dp_attention_stats stats[2];
    for (int i = 0; i < 2; i++) {
        dp_sequence *const s = i ? p->borrowing : p->own;
        dp_attention_stats_init(&stats[i]);
        ck_assert_int_eq(prefill ? dp_prefill(s, 0, n, q, out + i * rows * dim, lse + i * rows)
                                 : dp_decode(s, 0, n, q, &params, out + i * rows * dim, lse + i * rows, &stats[i]),
                         DP_OK);
    }
    for (size_t i = 0; i < rows * dim; i++) ck_assert(isfinite(out[i]));
    ck_assert_mem_eq(out, out + rows * dim, rows * dim * sizeof *out);
    ck_assert_mem_eq(lse, lse + rows, rows * sizeof *lse);
    for (int i = 0; i < 2; i++)
        stats[i].ns_score = stats[i].ns_select = stats[i].ns_scan = stats[i].ns_gather = stats[i].ns_merge = 0;
    ck_assert_mem_eq(&stats[0], &stats[1], sizeof stats[0]);
    free(q), free(out);
    return stats[0].sparse;
}

uint64_t clustered(const dp_sequence *s)
{
    return memory_of(s).clustered_tokens;
}
