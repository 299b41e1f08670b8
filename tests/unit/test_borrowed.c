/* Borrowed rows: the same bits as over rows of the sequence's own, wherever the caller keeps them; changed rows count at
 * once; memory that moves, is shared, or is gone between calls. */
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "faults.h"
#include "kv/sequence.h"
#include "unit.h"

/* ---- The caller's memory ---- */

enum { PACKED, PADDED, HEADS_FIRST, PAGED, PAGED_HEADS_FIRST, LAYOUTS };

typedef struct store {
    dp_borrowed_rows rows;
    char *memory, *copy; /* copy: what was written there, to see that nobody else did */
    size_t bytes;
    int32_t *table;
} store;

static size_t below(rng *r, size_t n)
{
    return (size_t)(rng_uniform(r) * (float)n);
}

/* Memory for n tokens; what is not written yet is NaN in every type. Blocks are in no order, and some of nobody. */
static store store_create(rng *r, const dp_row_format *f, size_t n_heads, size_t n, int layout, uint32_t block)
{
    const size_t element = dp_type_bytes(f->type), pad = layout == PACKED ? 0 : element * (1 + below(r, 37));
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

static void store_free(store *s)
{
    ck_assert_mem_eq(s->memory, s->copy, s->bytes);
    free(s->memory), free(s->copy), free(s->table);
}

static void put(store *s, const dp_row_format *f, const dp_kernels *kernels, const cache *c, size_t t)
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

typedef struct pair {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    dp_sequence *own, *borrowing;
    store store;
    size_t n, n_heads;
} pair;

static const dp_row_format *format_of(const pair *p)
{
    return &p->own->format;
}

/* Moves the caller's memory, to any layout. */
static void move(pair *p, int layout, uint32_t block)
{
    store next = store_create(&p->r, format_of(p), p->c.n_kv_heads, p->c.n_tokens, layout, block);
    for (size_t t = 0; t < p->n; t++) put(&next, format_of(p), &p->rt->kernels, &p->c, t);
    if (p->store.memory) store_free(&p->store);
    p->store = next;
    ck_assert_int_eq(dp_borrow(p->borrowing, 0, &p->store.rows), DP_OK);
}

static void begin(pair *p, uint32_t n_heads)
{
    p->n_heads = n_heads;
    ck_assert_int_eq(dp_sequence_create(p->rt, &p->config, &p->own), DP_OK);
    p->config.borrowed = 1;
    ck_assert_int_eq(dp_sequence_create(p->rt, &p->config, &p->borrowing), DP_OK);
}

static pair pair_create(uint64_t seed, size_t n_tokens, uint32_t segment_tokens)
{
    pair p = {.r = {seed}};
    p.c = cache_create(&p.r, n_tokens, 2, 64, 64, DP_BF16);
    p.rt = runtime_with(2, DP_ISA_AUTO);
    p.config = sequence_config(&p.c, 4, DP_BF16);
    p.config.segment_tokens = segment_tokens;
    p.config.pending_tokens = 128;
    begin(&p, 4);
    move(&p, PAGED, 16);
    return p;
}

static void pair_free(pair *p)
{
    dp_sequence_free(p->own);
    dp_sequence_free(p->borrowing);
    dp_runtime_free(p->rt);
    store_free(&p->store);
    cache_free(&p->c);
}

static void grow(pair *p, size_t n, size_t chunk)
{
    for (const size_t last = p->n + n; p->n < last;) {
        const size_t m = last - p->n < chunk ? last - p->n : chunk;
        append(p->own, &p->c, p->n, p->n + m, m);
        for (size_t t = p->n; t < p->n + m; t++) put(&p->store, format_of(p), &p->rt->kernels, &p->c, t);
        ck_assert_int_eq(dp_append(p->borrowing, 0, m, NULL, 0, NULL, 0), DP_OK);
        p->n += m;
    }
}

static void build(pair *p)
{
    ck_assert_int_eq(dp_build_index(p->own, 0), DP_OK);
    ck_assert_int_eq(dp_build_index(p->borrowing, 0), DP_OK);
}

static void truncate_both(pair *p, size_t n)
{
    ck_assert_int_eq(dp_sequence_truncate(p->own, 0, n), DP_OK);
    ck_assert_int_eq(dp_sequence_truncate(p->borrowing, 0, n), DP_OK);
    p->n = n;
}

static void check_same_reads(const pair *p)
{
    const size_t k_bytes = p->n * p->c.key_dim * sizeof(float), v_bytes = p->n * p->c.value_dim * sizeof(float);
    float *const k = malloc(2 * k_bytes), *const v = malloc(2 * v_bytes);
    for (uint32_t h = 0; h < p->c.n_kv_heads; h++) {
        float *const other_k = (float *)(void *)((char *)k + k_bytes), *const other_v = (float *)(void *)((char *)v + v_bytes);
        ck_assert_int_eq(dp_sequence_read(p->own, 0, h, 0, p->n, k, v), DP_OK);
        ck_assert_int_eq(dp_sequence_read(p->borrowing, 0, h, 0, p->n, other_k, other_v), DP_OK);
        ck_assert_mem_eq(k, other_k, k_bytes);
        ck_assert_mem_eq(v, other_v, v_bytes);
    }
    free(k), free(v);
}

/* Attention of the last n tokens by both, as prefill or decode; returns whether it was sparse. */
static bool check_same_bits(pair *p, size_t n, bool prefill, bool dense)
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
    for (int i = 0; i < 2; i++) stats[i].ns_score = stats[i].ns_select = stats[i].ns_scan = stats[i].ns_gather = stats[i].ns_merge = 0;
    ck_assert_mem_eq(&stats[0], &stats[1], sizeof stats[0]);
    free(q), free(out);
    return stats[0].sparse;
}

/* ---- The same bits ---- */

/* Shapes, types, layouts, page sizes at random, and a life at random. */
START_TEST(any_shape_and_layout)
{
    static const size_t groups[] = {1, 2, 3, 4, 8};
    pair p = {.r = {1000 + (uint64_t)_i}};
    const dp_type type = (dp_type)(_i % DP_TYPE_COUNT);
    const size_t kv_heads = 1 + below(&p.r, 3), key_dim = 8 * (1 + below(&p.r, 17)), value_dim = 8 * (1 + below(&p.r, 17));
    p.c = cache_create(&p.r, 3000, kv_heads, key_dim, value_dim, type);
    p.rt = runtime_with(2, _i % 4 == 3 ? DP_ISA_SCALAR : DP_ISA_AUTO);
    const uint32_t n_heads = (uint32_t)(kv_heads * groups[below(&p.r, 5)]);
    p.config = sequence_config(&p.c, n_heads, type);
    p.config.segment_tokens = _i % 2 ? 256 : 1000;
    p.config.pending_tokens = 64 << below(&p.r, 3);
    p.config.sink = (uint32_t)below(&p.r, 8);
    p.config.window = 16 * (uint32_t)(1 + below(&p.r, 4));
    begin(&p, n_heads);
    move(&p, _i % LAYOUTS, 1 + (uint32_t)(7 * _i) % 64);
    int sparse = 0;
    for (int round = 0; round < 14; round++) {
        size_t more = below(&p.r, round ? 600 : 1500);
        if (more > p.c.n_tokens - p.n) more = p.c.n_tokens - p.n;
        if (round % 3 == 2) {
            grow(&p, more < 150 ? more : 150, 1 + below(&p.r, 5));
        } else if (more > 1) {
            const size_t n = 1 + below(&p.r, 100) % more;
            grow(&p, more - n, 1000);
            grow(&p, n, n);
            check_same_bits(&p, n, true, false); /* also shows the queries to the index */
        }
        if (!p.n) continue;
        if (rng_uniform(&p.r) < 0.5f) build(&p);
        if (rng_uniform(&p.r) < 0.3f) move(&p, (int)below(&p.r, LAYOUTS), 1 + (uint32_t)below(&p.r, 64));
        const size_t most = dp_unclustered(p.own, &p.own->layers[0]);
        sparse += check_same_bits(&p, 1 + below(&p.r, most < 4 ? most : 4), false, false);
        check_same_bits(&p, 1, false, true);
        if (rng_uniform(&p.r) < 0.4f) truncate_both(&p, p.n - below(&p.r, rng_uniform(&p.r) < 0.5f ? 20 : p.n));
        if (rng_uniform(&p.r) < 0.3f) { /* the forks live on */
            dp_sequence *own, *borrowing;
            ck_assert_int_eq(dp_sequence_fork(p.own, &own), DP_OK);
            ck_assert_int_eq(dp_sequence_fork(p.borrowing, &borrowing), DP_OK);
            dp_sequence_free(p.own), dp_sequence_free(p.borrowing);
            p.own = own, p.borrowing = borrowing;
        }
    }
    ck_assert_int_gt(sparse, 3);
    check_same_reads(&p);
    pair_free(&p);
}
END_TEST

/* Pages of several sequences in one pool: a fork has the common pages, and a copy of the one that both write to. */
START_TEST(forks_share_pages)
{
    pair a = pair_create(3, 2000, 512), b = a;
    static const uint32_t sizes[] = {1, 2, 3, 7, 16, 31, 32, 64};
    const uint32_t block = sizes[_i];
    move(&a, PAGED, block);
    grow(&a, 1400, 200);
    build(&a);
    ck_assert_int_eq(dp_sequence_fork(a.own, &b.own), DP_OK);
    ck_assert_int_eq(dp_sequence_fork(a.borrowing, &b.borrowing), DP_OK);
    b.n = a.n;
    b.c = cache_create(&b.r, a.c.n_tokens, 2, 64, 64, DP_BF16); /* goes on differently */
    memcpy(b.c.k, a.c.k, 1400 * 2 * 64 * sizeof(float));
    memcpy(b.c.v, a.c.v, 1400 * 2 * 64 * sizeof(float));

    /* One pool; b's table begins like a's. */
    store pool = store_create(&a.r, format_of(&a), 2, 2 * 2000, PAGED, block);
    const size_t entries = (2000 + block - 1) / block, common = 1400 / block;
    int32_t *const table = malloc(entries * sizeof *table);
    for (size_t i = 0; i < entries; i++) table[i] = pool.table[i < common ? i : entries + i - common];
    pool.rows.n_tokens = 2000;
    store_free(&a.store);
    a.store = b.store = pool;
    b.store.rows.block_table = table;
    for (size_t t = 0; t < a.n; t++) put(&a.store, format_of(&a), &a.rt->kernels, &a.c, t);
    for (size_t t = common * block; t < b.n; t++) put(&b.store, format_of(&b), &b.rt->kernels, &b.c, t);
    ck_assert_int_eq(dp_borrow(a.borrowing, 0, &a.store.rows), DP_OK);
    ck_assert_int_eq(dp_borrow(b.borrowing, 0, &b.store.rows), DP_OK);
    for (int i = 0; i < 3; i++) {
        grow(&a, 150, 3);
        grow(&b, 130, 130);
        ck_assert(check_same_bits(&a, 1 + (size_t)i, false, false));
        ck_assert(check_same_bits(&b, 2, false, false));
    }
    check_same_reads(&a), check_same_reads(&b);
    dp_sequence_free(b.own), dp_sequence_free(b.borrowing);
    cache_free(&b.c);
    pair_free(&a);
    free(table);
}
END_TEST

/* Both kinds of sequences in one batch give what they give alone. */
START_TEST(batch)
{
    enum { N = 6, OUT = 4 * 64 };
    pair p[N / 2];
    dp_sequence *s[N];
    float q[N][OUT], out[N][OUT], alone[N][OUT];
    dp_decode_request requests[N];
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    for (int i = 0; i < N; i++) {
        pair *const x = &p[i / 2];
        if (i % 2 == 0) {
            *x = pair_create(60 + (uint64_t)i, 2600, 1024);
            dp_sequence_free(x->own), dp_sequence_free(x->borrowing), dp_runtime_free(x->rt); /* all in one runtime */
            x->rt = rt;
            x->config.borrowed = 0;
            begin(x, 4);
            ck_assert_int_eq(dp_borrow(x->borrowing, 0, &x->store.rows), DP_OK);
            grow(x, 2200 + 100 * (size_t)i, 500);
            build(x);
            make_queries(&x->r, &x->c, 1, 4, q[i]);
            memcpy(q[i + 1], q[i], sizeof q[i]);
        }
        s[i] = i % 2 ? x->borrowing : x->own;
        ck_assert_int_eq(dp_decode(s[i], 0, 1, q[i], NULL, alone[i], NULL, NULL), DP_OK);
        dp_decode_request_init(&requests[i]);
        requests[i].sequence = s[i], requests[i].q = q[i], requests[i].out = out[i];
    }
    ck_assert_int_eq(dp_decode_batch(rt, N, requests), DP_OK);
    ck_assert_mem_eq(out, alone, sizeof out);
    for (int i = 0; i < N; i += 2) {
        dp_sequence_free(s[i]), dp_sequence_free(s[i + 1]);
        store_free(&p[i / 2].store);
        cache_free(&p[i / 2].c);
    }
    dp_runtime_free(rt);
}
END_TEST

/* ---- Changed rows ---- */

static uint64_t clustered(const dp_sequence *s)
{
    dp_memory m;
    dp_memory_init(&m);
    ck_assert_int_eq(dp_sequence_memory(s, &m), DP_OK);
    return m.clustered_tokens;
}

/* Writes other rows, into the cache and into the caller's memory, and says so. */
static void change(pair *p, size_t from, size_t to)
{
    cache other = cache_create(&p->r, p->c.n_tokens, p->c.n_kv_heads, p->c.key_dim, p->c.value_dim, DP_BF16);
    const size_t kw = p->c.n_kv_heads * p->c.key_dim, vw = p->c.n_kv_heads * p->c.value_dim;
    memcpy(p->c.k + from * kw, other.k + from * kw, (to - from) * kw * sizeof(float));
    memcpy(p->c.v + from * vw, other.v + from * vw, (to - from) * vw * sizeof(float));
    for (size_t t = from; t < to; t++) put(&p->store, format_of(p), &p->rt->kernels, &p->c, t);
    ck_assert_int_eq(dp_rows_changed(p->borrowing, from % 2 ? 0 : DP_ALL_LAYERS, from, to), DP_OK);
    cache_free(&other);
}

/* Dense attention, Double-P where it may leave nothing out, and prefill are the reference's. */
static void check_right(pair *p)
{
    enum { OUT = 4 * 64 };
    float q[2 * OUT], out[2 * OUT], wanted[2 * OUT];
    const size_t n = dp_unclustered(p->borrowing, &p->borrowing->layers[0]) < 2 ? 1 : 2;
    cache seen = p->c;
    seen.n_tokens = p->n;
    make_queries(&p->r, &seen, n, 4, q);
    reference_attention(&seen, 4, 0.125f, n, q, wanted, NULL);
    for (int how = 0; how < 3; how++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.method = how ? DP_DOUBLE_P : DP_DENSE;
        params.p1 = 1, params.epsilon = 0, params.min_context = 0;
        ck_assert_int_eq(how == 2 ? dp_prefill(p->borrowing, 0, n, q, out, NULL)
                                  : dp_decode(p->borrowing, 0, n, q, &params, out, NULL, NULL),
                         DP_OK);
        ck_assert_double_lt(relative_error(out, wanted, n * OUT), 1e-5);
    }
}

/* What changed is read exactly, the other segments stay; once it is clustered anew there is no trace of the past. */
START_TEST(changed_rows_count_at_once)
{
    static const size_t changes[][2] = {{0, 4}, {1000, 1001}, {500, 1700}, {4, 3000}, {2950, 3000}, {7, 7}, {515, 516}};
    static const int segments[] = {0, 1, 4, 6, 0, 0, 1}; /* of the 6 of 512 tokens (the last is of 372) */
    pair p = pair_create(5, 3300, 512);
    move(&p, _i % LAYOUTS, 24);
    grow(&p, 3000, 300);
    build(&p);
    const uint64_t all = clustered(p.borrowing);
    ck_assert_uint_eq(all, 2 * 2932);
    change(&p, changes[_i][0], changes[_i][1]);
    const uint64_t left = all - 2 * (uint64_t)(segments[_i] == 6 ? 2932 : 512 * segments[_i]);
    ck_assert_uint_eq(clustered(p.borrowing), left);
    check_right(&p);
    float q[4 * 64], out[4 * 64];
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    make_queries(&p.r, &p.c, 1, 4, q);
    ck_assert_int_eq(dp_decode(p.borrowing, 0, 1, q, NULL, out, NULL, &stats), DP_OK);
    ck_assert_uint_eq(stats.tokens_exact, 2 * 3000 - left);
    ck_assert_int_eq(stats.sparse, left > 0);

    build(&p);
    ck_assert_uint_eq(clustered(p.borrowing), all);
    dp_sequence_free(p.own); /* as one that saw the new rows only, with the same segments and statistics of queries */
    p.config.borrowed = 0;
    ck_assert_int_eq(dp_sequence_create(p.rt, &p.config, &p.own), DP_OK);
    append(p.own, &p.c, 0, 3000, 300);
    ck_assert_int_eq(dp_build_index(p.own, 0), DP_OK);
    for (int i = 0; i < 4; i++) ck_assert(check_same_bits(&p, 1, false, false));
    grow(&p, 300, 1); /* and goes on like it */
    ck_assert(check_same_bits(&p, 1, false, false));
    pair_free(&p);
}
END_TEST

/* Short appends cluster one stale segment of one head each, a long one all; a dense layer keeps them. */
START_TEST(stale_segments_are_clustered_anew)
{
    pair p = pair_create(6, 5000, 512);
    grow(&p, 3000, 300);
    build(&p);
    const uint64_t all = clustered(p.borrowing);
    change(&p, 100, 1600); /* four segments of each of two heads */
    for (uint64_t n = 8; n-- > 0;) {
        grow(&p, 1, 1);
        ck_assert_uint_eq(clustered(p.borrowing), all - 512 * n);
        if (n % 3 == 0) check_right(&p);
    }
    change(&p, 0, p.n);
    ck_assert_int_eq(dp_sequence_set_dense(p.borrowing, 0, 1), DP_OK);
    grow(&p, 64, 64);
    ck_assert_uint_eq(clustered(p.borrowing), 0);
    check_right(&p);
    ck_assert_int_eq(dp_sequence_set_dense(p.borrowing, 0, 0), DP_OK);
    grow(&p, 64, 64);
    ck_assert_uint_eq(clustered(p.borrowing), all);
    check_right(&p);
    pair_free(&p);
}
END_TEST

/* A life at random, with changes: always the attention over what is there. */
START_TEST(changes_at_any_time)
{
    pair p = pair_create(70 + (uint64_t)_i, 4000, _i % 2 ? 1000 : 128);
    for (int round = 0; round < 40; round++) {
        const size_t left = p.c.n_tokens - p.n, more = below(&p.r, 1200);
        grow(&p, more < left ? more : left, rng_uniform(&p.r) < 0.5f ? 9 : 300);
        if (rng_uniform(&p.r) < 0.4f) build(&p);
        if (rng_uniform(&p.r) < 0.6f && p.n) {
            const size_t from = below(&p.r, p.n), n = below(&p.r, rng_uniform(&p.r) < 0.5f ? 10 : p.n);
            change(&p, from, from + n < p.n ? from + n : p.n);
        }
        if (rng_uniform(&p.r) < 0.5f) truncate_both(&p, p.n - below(&p.r, rng_uniform(&p.r) < 0.5f ? 50 : p.n));
        if (rng_uniform(&p.r) < 0.3f) move(&p, (int)below(&p.r, LAYOUTS), 1 + (uint32_t)below(&p.r, 64));
        if (rng_uniform(&p.r) < 0.3f) {
            dp_sequence *fork;
            ck_assert_int_eq(dp_sequence_fork(p.borrowing, &fork), DP_OK);
            dp_sequence_free(p.borrowing);
            p.borrowing = fork;
        }
        if (p.n) check_right(&p);
        uint64_t clusters = 0, panels = 0;
        for (uint32_t h = 0; h < 2; h++) {
            const dp_head *const head = &p.borrowing->layers[0].heads[h];
            uint32_t stale = 0;
            for (uint32_t i = 0; i < head->n_segments; i++) {
                stale += dp_segment_stale(&head->segments[i]);
                panels += head->segments[i].n_panels;
                clusters += dp_segment_stale(&head->segments[i]) ? 0 : head->segments[i].n_tokens;
            }
            ck_assert_uint_eq(head->n_stale, stale);
            panels -= head->n_panels;
        }
        ck_assert_uint_eq(clusters, clustered(p.borrowing));
        ck_assert_uint_eq(panels, 0);
    }
    pair_free(&p);
}
END_TEST

/* ---- The caller's memory is the caller's ---- */

/* Nothing but the calls that the header names touch it; it may be elsewhere, or nowhere, between them. */
START_TEST(memory_that_moves)
{
    pair p = pair_create(8, 3000, 512);
    move(&p, PADDED, 0);
    grow(&p, 2500, 500);
    build(&p);
    char *const place = mmap(NULL, p.store.bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(place, MAP_FAILED);
    ck_assert_int_eq(mprotect(place, p.store.bytes, PROT_READ | PROT_WRITE), 0);
    memcpy(place, p.store.memory, p.store.bytes);
    ck_assert_int_eq(mprotect(place, p.store.bytes, PROT_READ), 0);
    dp_borrowed_rows moved = p.store.rows;
    moved.k = place + ((const char *)moved.k - p.store.memory);
    moved.v = place + ((const char *)moved.v - p.store.memory);
    ck_assert_int_eq(dp_borrow(p.borrowing, 0, &moved), DP_OK);
    check_same_bits(&p, 3, false, false); /* only reads: writes would crash */
    ck_assert_int_eq(munmap(place, p.store.bytes), 0);

    dp_sequence *fork;
    ck_assert_int_eq(dp_sequence_fork(p.borrowing, &fork), DP_OK);
    truncate_both(&p, 2000);
    ck_assert_uint_eq(clustered(fork), 2 * 2432);
    ck_assert_int_eq(dp_rows_changed(fork, 0, 0, 700), DP_OK);
    ck_assert_int_eq(dp_borrow(p.borrowing, 0, &p.store.rows), DP_OK);
    check_same_bits(&p, 1, false, false);
    dp_sequence_free(fork);

    dp_memory m, own;
    dp_memory_init(&m), dp_memory_init(&own);
    ck_assert_int_eq(dp_sequence_memory(p.borrowing, &m), DP_OK);
    ck_assert_int_eq(dp_sequence_memory(p.own, &own), DP_OK);
    ck_assert_uint_eq(m.row_bytes, 0);
    ck_assert_uint_eq(m.plain_bytes, own.plain_bytes);
    ck_assert_uint_eq(m.index_bytes, own.index_bytes);
    pair_free(&p);
}
END_TEST

/* Steps and moves allocate nothing. */
START_TEST(no_allocation)
{
    pair p = pair_create(9, 3000, 512);
    grow(&p, 2900, 500);
    build(&p);
    float q[4 * 64], out[4 * 64];
    make_queries(&p.r, &p.c, 1, 4, q);
    for (int i = 0; i < 3; i++) {
        faults_arm(0, false);
        const bool ok = !dp_borrow(p.borrowing, 0, &p.store.rows) && !dp_append(p.borrowing, 0, 1, NULL, 0, NULL, 0) &&
                        !dp_decode(p.borrowing, 0, 1, q, NULL, out, NULL, NULL) &&
                        !dp_sequence_truncate(p.borrowing, 0, 2900);
        faults_disarm();
        ck_assert(ok); /* Check's macros allocate */
        if (i) ck_assert_int_eq(faults_counted(), 0);
    }
    pair_free(&p);
}
END_TEST

/* ---- Errors ---- */

static void refused(const pair *p, dp_status status, const char *words)
{
    char text[256];
    ck_assert_int_eq(status, DP_ERR_INVALID);
    dp_last_error(p->rt, text, sizeof text);
    ck_assert_msg(strstr(text, words) != NULL, "\"%s\" does not say \"%s\"", text, words);
}

START_TEST(errors)
{
    pair p = pair_create(10, 300, 512);
    const dp_borrowed_rows good = p.store.rows;
    dp_borrowed_rows r = good;
    grow(&p, 200, 200);
#define REFUSES(change, words)                                                                                         \
    do {                                                                                                               \
        r = good;                                                                                                      \
        change;                                                                                                        \
        refused(&p, dp_borrow(p.borrowing, 0, &r), words);                                                             \
    } while (0)
    refused(&p, dp_borrow(p.own, 0, &good), "keeps its own rows");
    refused(&p, dp_borrow(p.borrowing, 1, &good), "layer 1 of 1");
    refused(&p, dp_borrow(p.borrowing, 0, NULL), "rows is NULL");
    ck_assert_int_eq(dp_borrow(NULL, 0, &good), DP_ERR_INVALID);
    REFUSES(r.struct_size = 0, "dp_borrowed_rows_init");
    REFUSES(r.k = NULL, "k is NULL");
    REFUSES(r.v = NULL, "v is NULL");
    REFUSES(r.k = (const char *)r.k + 1, "multiples of the element's size, 2");
    REFUSES(r.v_token_stride |= 1, "v and its strides");
    REFUSES(r.k_token_stride = 126, "k_token_stride 126");
    REFUSES(r.v_head_stride = 126, "v_head_stride 126");
    REFUSES(r.k_block_stride = SIZE_MAX / 4 * 2, "beyond all memory");
    REFUSES(r.n_tokens = 199, "the 200 tokens of the layer");
    REFUSES(r.n_tokens = 0, "n_tokens is 0");
    REFUSES(r.n_tokens = (uint64_t)1 << 32, "2^32 - 1");
    REFUSES(r.block_tokens = 0, "block_tokens is 0");
    REFUSES(r.n_blocks = 0, "n_blocks 0");
    REFUSES(r.block_table = NULL, "block_table is NULL, but");
    REFUSES(r.block_table = (const void *)((const char *)r.block_table + 2), "not aligned");
    const int32_t entry = p.store.table[12];
    p.store.table[12] = (int32_t)good.n_blocks;
    REFUSES((void)0, "block_table[12] is");
    p.store.table[12] = entry;
    p.store.table[17] = -1; /* not in use yet */
    ck_assert_int_eq(dp_borrow(p.borrowing, 0, &good), DP_OK);
    refused(&p, dp_append(p.borrowing, 0, 80, NULL, 0, NULL, 0), "block_table[17] is -1");
    refused(&p, dp_append(p.borrowing, 0, 101, NULL, 0, NULL, 0), "room for 300 tokens, not 301");
    refused(&p, dp_append(p.borrowing, 0, 1, p.c.k, 0, p.c.v, 0), "k and v must be NULL");
    ck_assert_uint_eq(dp_sequence_tokens(p.borrowing, 0), 200);
    check_same_bits(&p, 3, false, true);

    refused(&p, dp_rows_changed(p.own, 0, 0, 1), "keeps its own rows");
    refused(&p, dp_rows_changed(p.borrowing, 7, 0, 1), "layer 7 of 1");
    refused(&p, dp_rows_changed(p.borrowing, 0, 0, 201), "tokens 0 to 201 of the 200");
    refused(&p, dp_rows_changed(p.borrowing, DP_ALL_LAYERS, 5, 4), "tokens 5 to 4");
    ck_assert_int_eq(dp_rows_changed(NULL, 0, 0, 0), DP_ERR_INVALID);

    dp_sequence *fresh;
    ck_assert_int_eq(dp_sequence_create(p.rt, &p.config, &fresh), DP_OK);
    refused(&p, dp_append(fresh, 0, 1, NULL, 0, NULL, 0), "dp_borrow was not called for layer 0");
    dp_sequence_free(fresh);
    p.config.borrowed = 2;
    refused(&p, dp_sequence_create(p.rt, &p.config, &fresh), "borrowed is 2");
    pair_free(&p);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("borrowed");
    TCase *const tc = tcase_create("borrowed");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, any_shape_and_layout, 0, 10);
    tcase_add_test(tc, batch);
    tcase_add_loop_test(tc, changed_rows_count_at_once, 0, 7);
    tcase_add_test(tc, stale_segments_are_clustered_anew);
    tcase_add_test(tc, memory_that_moves);
    tcase_add_test(tc, no_allocation);
    tcase_add_test(tc, errors);
    suite_add_tcase(suite, tc);
    TCase *const slow = slow_cases(suite);
    tcase_add_loop_test(slow, any_shape_and_layout, 10, 24);
    tcase_add_loop_test(slow, forks_share_pages, 0, 8);
    tcase_add_loop_test(slow, changes_at_any_time, 0, 4);
    return run_suite(suite);
}
