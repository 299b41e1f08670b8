/* Borrowed rows: the same bits as over rows of the sequence's own, wherever the caller keeps them; memory that moves, is
 * shared, or is gone between calls. */
#include <string.h>
#include <sys/mman.h>

#include "borrowed.h"
#include "faults.h"

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
    p.config.softcap = _i % 3 ? 0 : 8;
    pair_begin(&p, n_heads);
    pair_move(&p, _i % LAYOUTS, 1 + (uint32_t)(7 * _i) % 64);
    int sparse = 0;
    for (int round = 0; round < 14; round++) {
        size_t more = below(&p.r, round ? 600 : 1500);
        if (more > p.c.n_tokens - p.n) more = p.c.n_tokens - p.n;
        if (round % 3 == 2) {
            pair_grow(&p, more < 150 ? more : 150, 1 + below(&p.r, 5));
        } else if (more > 1) {
            const size_t n = 1 + below(&p.r, 100) % more;
            pair_grow(&p, more - n, 1000);
            pair_grow(&p, n, n);
            check_same_bits(&p, n, true, false); /* also shows the queries to the index */
        }
        if (!p.n) continue;
        if (rng_uniform(&p.r) < 0.5f) pair_build(&p);
        if (rng_uniform(&p.r) < 0.3f) pair_move(&p, (int)below(&p.r, LAYOUTS), 1 + (uint32_t)below(&p.r, 64));
        const size_t most = dp_unclustered(p.own, &p.own->layers[0]);
        sparse += check_same_bits(&p, 1 + below(&p.r, most < 4 ? most : 4), false, false);
        check_same_bits(&p, 1, false, true);
        if (rng_uniform(&p.r) < 0.4f) pair_truncate(&p, p.n - below(&p.r, rng_uniform(&p.r) < 0.5f ? 20 : p.n));
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
    pair_move(&a, PAGED, block);
    pair_grow(&a, 1400, 200);
    pair_build(&a);
    ck_assert_int_eq(dp_sequence_fork(a.own, &b.own), DP_OK);
    ck_assert_int_eq(dp_sequence_fork(a.borrowing, &b.borrowing), DP_OK);
    b.n = a.n;
    b.c = cache_create(&b.r, a.c.n_tokens, 2, 64, 64, DP_BF16); /* goes on differently */
    memcpy(b.c.k, a.c.k, 1400 * 2 * 64 * sizeof(float));
    memcpy(b.c.v, a.c.v, 1400 * 2 * 64 * sizeof(float));

    /* One pool; b's table begins like a's. */
    store pool = store_create(&a.r, pair_format(&a), 2, 2 * 2000, PAGED, block);
    const size_t entries = (2000 + block - 1) / block, common = 1400 / block;
    int32_t *const table = malloc(entries * sizeof *table);
    for (size_t i = 0; i < entries; i++) table[i] = pool.table[i < common ? i : entries + i - common];
    pool.rows.n_tokens = 2000;
    store_free(&a.store);
    a.store = b.store = pool;
    b.store.rows.block_table = table;
    for (size_t t = 0; t < a.n; t++) store_put(&a.store, pair_format(&a), &a.rt->kernels, &a.c, t);
    for (size_t t = common * block; t < b.n; t++) store_put(&b.store, pair_format(&b), &b.rt->kernels, &b.c, t);
    ck_assert_int_eq(dp_borrow(a.borrowing, 0, &a.store.rows), DP_OK);
    ck_assert_int_eq(dp_borrow(b.borrowing, 0, &b.store.rows), DP_OK);
    for (int i = 0; i < 3; i++) {
        pair_grow(&a, 150, 3);
        pair_grow(&b, 130, 130);
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
            pair_begin(x, 4);
            ck_assert_int_eq(dp_borrow(x->borrowing, 0, &x->store.rows), DP_OK);
            pair_grow(x, 2200 + 100 * (size_t)i, 500);
            pair_build(x);
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

/* ---- The caller's memory is the caller's ---- */

/* Nothing but the calls that the header names touch it; it may be elsewhere, or nowhere, between them. */
START_TEST(memory_that_moves)
{
    pair p = pair_create(8, 3000, 512);
    pair_move(&p, PADDED, 0);
    pair_grow(&p, 2500, 500);
    pair_build(&p);
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
    pair_truncate(&p, 2000);
    ck_assert_uint_eq(clustered(fork), 2 * 2432);
    ck_assert_int_eq(dp_rows_changed(fork, 0, 0, 700), DP_OK);
    ck_assert_int_eq(dp_borrow(p.borrowing, 0, &p.store.rows), DP_OK);
    check_same_bits(&p, 1, false, false);
    dp_sequence_free(fork);

    const dp_memory m = memory_of(p.borrowing), own = memory_of(p.own);
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
    pair_grow(&p, 2900, 500);
    pair_build(&p);
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
    pair_grow(&p, 200, 200);
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
    REFUSES(r.k = (const char *)r.k + 1, "multiples of a row's alignment, 2");
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
    tcase_add_test(tc, memory_that_moves);
    tcase_add_test(tc, no_allocation);
    tcase_add_test(tc, errors);
    suite_add_tcase(suite, tc);
    TCase *const slow = slow_cases(suite);
    tcase_add_loop_test(slow, any_shape_and_layout, 10, 24);
    tcase_add_loop_test(slow, forks_share_pages, 0, 8);
    return run_suite(suite);
}
