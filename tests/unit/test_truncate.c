/* Taking tokens back: to any length, with the rows, the attention and the memory of a sequence that was never longer. */
#include <string.h>

#include "kv/sequence.h"
#include "unit.h"

enum { HEADS = 8, KV_HEADS = 4, DIM = 64, OUT = HEADS * DIM };

typedef struct fixture {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    dp_sequence *s;
} fixture;

static fixture setup(size_t n_tokens, uint32_t segment_tokens, uint32_t pending_tokens)
{
    fixture f = {.r = {41}};
    f.c = cache_create(&f.r, n_tokens, KV_HEADS, DIM, DIM, DP_BF16);
    f.rt = runtime_with(2, DP_ISA_AUTO);
    f.config = sequence_config(&f.c, HEADS, DP_BF16);
    f.config.segment_tokens = segment_tokens;
    f.config.pending_tokens = pending_tokens;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &f.s), DP_OK);
    return f;
}

static void teardown(fixture *f)
{
    dp_sequence_free(f->s);
    runtime_end(f->rt);
    cache_free(&f->c);
}

/* Every token is where it belongs, the window is out of the clusters, the counters are right. */
static void check_structure(const dp_sequence *s, size_t n_tokens)
{
    ck_assert_uint_eq(dp_sequence_tokens(s, 0), n_tokens);
    const size_t after_sink = n_tokens > s->config.sink ? n_tokens - s->config.sink : 0;
    const size_t window = after_sink < s->config.window ? after_sink : s->config.window;
    for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
        const dp_head *const head = &s->layers[0].heads[h];
        uint64_t next = head->sink.n, panels = 0;
        ck_assert_uint_eq(head->sink.n, n_tokens - after_sink);
        for (uint32_t i = 0; i < head->n_segments; i++) {
            ck_assert_uint_eq(head->segments[i].first_token, next);
            next += head->segments[i].n_tokens;
            panels += head->segments[i].n_panels;
        }
        ck_assert_uint_eq(head->clustered, next - head->sink.n);
        ck_assert_uint_eq(head->n_panels, panels);
        ck_assert_uint_eq(next + head->tail.n, n_tokens);
        ck_assert_uint_ge(head->tail.n, window);
        ck_assert_uint_le(head->tail.n, head->tail.capacity);
    }
}

static void check_rows(const fixture *f, size_t n_tokens)
{
    float *const k = malloc((n_tokens + 1) * DIM * sizeof *k), *const v = malloc((n_tokens + 1) * DIM * sizeof *v);
    for (uint32_t h = 0; h < KV_HEADS; h++) {
        ck_assert_int_eq(dp_sequence_read(f->s, 0, h, 0, n_tokens, k, v), DP_OK);
        for (size_t t = 0; t < n_tokens; t++) {
            ck_assert_mem_eq(k + t * DIM, f->c.k + (t * KV_HEADS + h) * DIM, DIM * sizeof *k);
            ck_assert_mem_eq(v + t * DIM, f->c.v + (t * KV_HEADS + h) * DIM, DIM * sizeof *v);
        }
    }
    free(k), free(v);
}

/* Dense attention, and Double-P where it may leave nothing out, are the reference's over the tokens that are left. */
static void check_attention(fixture *f, size_t n_tokens)
{
    float q[OUT], out[OUT], wanted[OUT];
    cache left = f->c;
    left.n_tokens = n_tokens;
    make_queries(&f->r, &left, 1, HEADS, q);
    reference_attention(&left, HEADS, 0.125f, 1, q, wanted, NULL);
    dp_attention_params params;
    for (int method = DP_DENSE; method <= DP_DOUBLE_P; method++) {
        dp_attention_params_init(&params);
        params.method = (dp_method)method;
        params.p1 = 1, params.epsilon = 0, params.min_context = 0;
        ck_assert_int_eq(dp_decode(f->s, 0, 1, q, &params, out, NULL, NULL), DP_OK);
        ck_assert_double_lt(relative_error(out, wanted, OUT), 1e-5);
    }
}

/* To and fro at random, by short and long appends, with and without building: always as if nothing else had ever been
 * there, since what is appended after a truncation is the cache's rows once more. */
START_TEST(any_length)
{
    fixture f = setup(6000, _i ? 1000 : 256, _i ? 256 : 64);
    size_t n = 0;
    for (int round = 0; round < 40; round++) {
        const size_t left = f.c.n_tokens - n;
        size_t more = (size_t)(rng_uniform(&f.r) * 2500);
        if (more > left) more = left;
        append(f.s, &f.c, n, n + more, rng_uniform(&f.r) < 0.5f ? 7 : 300);
        n += more;
        if (rng_uniform(&f.r) < 0.5f) ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
        size_t back = (size_t)(rng_uniform(&f.r) * (rng_uniform(&f.r) < 0.5f ? 100 : 3000));
        if (back > n) back = n;
        n -= back;
        ck_assert_int_eq(dp_sequence_truncate(f.s, round % 2 ? 0 : DP_ALL_LAYERS, n), DP_OK);
        check_structure(f.s, n);
        check_rows(&f, n);
        if (n) check_attention(&f, n);
    }
    teardown(&f);
}
END_TEST

/* Each length around the borders of sink, segments and window. */
START_TEST(every_border)
{
    fixture f = setup(900, 128, 64);
    append(f.s, &f.c, 0, 900, 300);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    for (size_t n = 900; n-- > 0;) {
        ck_assert_int_eq(dp_sequence_truncate(f.s, 0, n), DP_OK);
        check_structure(f.s, n);
        if (n % 50 == 0) check_rows(&f, n);
        if (n % 16 == 0 && n) { /* segments come and go */
            ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
            check_structure(f.s, n);
        }
    }
    teardown(&f);
}
END_TEST

/* Speculative decoding: a draft is appended, verified, and its refused end is taken back. The bits are those of a
 * sequence that only ever got what was accepted, and no cluster is undone. */
START_TEST(refused_drafts_leave_no_trace)
{
    enum { DRAFT = 8 };
    fixture f = setup(4000, 1024, 128);
    dp_sequence *plain;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &plain), DP_OK);
    append(f.s, &f.c, 0, 2500, 500);
    append(plain, &f.c, 0, 2500, 500);
    float q[DRAFT * OUT], a[DRAFT * OUT], b[DRAFT * OUT];
    uint64_t clustered = 0;
    for (size_t t = 2500; t + DRAFT < f.c.n_tokens;) {
        const size_t accepted = 1 + (size_t)(rng_uniform(&f.r) * DRAFT);
        append(f.s, &f.c, t, t + DRAFT, DRAFT);
        ck_assert_uint_ge(f.s->layers[0].heads[1].clustered, clustered);
        clustered = f.s->layers[0].heads[1].clustered;
        ck_assert_int_eq(dp_sequence_truncate(f.s, 0, t + accepted), DP_OK);
        ck_assert_uint_eq(f.s->layers[0].heads[1].clustered, clustered);
        append(plain, &f.c, t, t + accepted, accepted);
        t += accepted;
        make_queries(&f.r, &f.c, accepted, HEADS, q);
        ck_assert_int_eq(dp_decode(f.s, 0, accepted, q, NULL, a, NULL, NULL), DP_OK);
        ck_assert_int_eq(dp_decode(plain, 0, accepted, q, NULL, b, NULL, NULL), DP_OK);
        ck_assert_mem_eq(a, b, accepted * OUT * sizeof *a);
    }
    ck_assert_uint_gt(clustered, 3000); /* the index did grow meanwhile */
    dp_sequence_free(plain);
    teardown(&f);
}
END_TEST

/* Tokens that were put back are clustered again: when enough have come after them, pairs of heads in turn; the tail's room does
 * not grow by every token. */
START_TEST(put_back_tokens_are_clustered_again)
{
    fixture f = setup(6000, 2048, 256);
    append(f.s, &f.c, 0, 5000, 500);
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    ck_assert_int_eq(dp_sequence_truncate(f.s, 0, 4500), DP_OK);
    const dp_head *const heads = f.s->layers[0].heads;
    ck_assert_uint_eq(heads[0].tail.n, 4500 - 4 - 4096);
    int moves = 0, most_at_once = 0;
    const char *tail = heads[0].tail.k;
    for (size_t t = 4500; t < 4500 + 300; t++) {
        uint64_t before[KV_HEADS];
        for (int h = 0; h < KV_HEADS; h++) before[h] = heads[h].clustered;
        append(f.s, &f.c, t, t + 1, 1);
        int at_once = 0;
        for (int h = 0; h < KV_HEADS; h++) at_once += heads[h].clustered > before[h];
        if (at_once > most_at_once) most_at_once = at_once;
        moves += heads[0].tail.k != tail;
        tail = heads[0].tail.k;
    }
    ck_assert_int_eq(most_at_once, 2);
    for (int h = 0; h < KV_HEADS; h++) ck_assert_uint_le(heads[h].tail.n, 64 + 256 + 1);
    ck_assert_int_le(moves, 3);
    check_rows(&f, 4800);
    teardown(&f);
}
END_TEST

/* Memory comes back, and rounds of filling and emptying do not pile up; an emptied sequence computes what a new one
 * does. */
START_TEST(memory_is_given_back)
{
    fixture f = setup(20000, 4096, 256);
    dp_memory full, empty, first, again;
    dp_memory_init(&full), dp_memory_init(&empty), dp_memory_init(&first), dp_memory_init(&again);
    float q[OUT], a[OUT], b[OUT];
    make_queries(&f.r, &f.c, 1, HEADS, q);
    for (int round = 0; round < 4; round++) {
        append(f.s, &f.c, 0, 20000, 1000);
        ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
        ck_assert_int_eq(dp_sequence_memory(f.s, round ? &again : &full), DP_OK);
        if (round) ck_assert_uint_eq(again.reserved_bytes, full.reserved_bytes);
        ck_assert_int_eq(dp_decode(f.s, 0, 1, q, NULL, round ? b : a, NULL, NULL), DP_OK);
        if (round) ck_assert_mem_eq(a, b, sizeof a);
        ck_assert_int_eq(dp_sequence_truncate(f.s, 0, 12000), DP_OK);
        ck_assert_int_eq(dp_sequence_memory(f.s, &again), DP_OK);
        ck_assert_double_lt((double)again.reserved_bytes, 0.8 * (double)full.reserved_bytes);
        ck_assert_int_eq(dp_sequence_truncate(f.s, 0, 0), DP_OK);
        ck_assert_int_eq(dp_sequence_memory(f.s, round ? &again : &empty), DP_OK);
        if (round) ck_assert_uint_eq(again.reserved_bytes, empty.reserved_bytes);
    }
    ck_assert_uint_eq(empty.row_bytes + empty.index_bytes, 0);
    ck_assert_double_lt((double)empty.reserved_bytes, 0.2 * (double)full.reserved_bytes);
    teardown(&f);
}
END_TEST

START_TEST(layers_and_errors)
{
    fixture f = setup(600, 128, 64);
    f.config.n_layers = 3;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &s), DP_OK);
    for (uint32_t l = 0; l < 3; l++) ck_assert_int_eq(dp_append(s, l, 500 + l, f.c.k, 0, f.c.v, 0), DP_OK);
    char text[256];
    ck_assert_int_eq(dp_sequence_truncate(s, DP_ALL_LAYERS, 501), DP_ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(dp_last_error(f.rt, text, sizeof text), "layer 0 has 500 tokens, not 501"));
    ck_assert_int_eq(dp_sequence_truncate(s, 3, 5), DP_ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(dp_last_error(f.rt, text, sizeof text), "layer 3 of 3"));
    ck_assert_int_eq(dp_sequence_truncate(NULL, 0, 5), DP_ERR_INVALID);
    for (uint32_t l = 0; l < 3; l++) ck_assert_uint_eq(dp_sequence_tokens(s, l), 500 + l);
    ck_assert_int_eq(dp_sequence_truncate(s, DP_ALL_LAYERS, 500), DP_OK); /* a step that stopped half way */
    for (uint32_t l = 0; l < 3; l++) ck_assert_uint_eq(dp_sequence_tokens(s, l), 500);
    ck_assert_int_eq(dp_sequence_truncate(s, 1, 2), DP_OK);
    ck_assert_uint_eq(dp_sequence_tokens(s, 0), 500);
    ck_assert_uint_eq(dp_sequence_tokens(s, 1), 2);
    dp_sequence_free(s);
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("truncate");
    TCase *const tc = tcase_create("truncate"), *const slow = slow_cases(suite);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(slow, any_length, 0, 2);
    tcase_add_test(tc, every_border);
    tcase_add_test(tc, refused_drafts_leave_no_trace);
    tcase_add_test(tc, put_back_tokens_are_clustered_again);
    tcase_add_test(slow, memory_is_given_back);
    tcase_add_test(tc, layers_and_errors);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
