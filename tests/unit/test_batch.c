/* dp_decode_batch: the bits and the figures of single calls, whatever is in the batch, on any number of threads; all or
 * nothing. */
#include <string.h>

#include "unit.h"

enum { REQUESTS = 10, QUERIES = 5, LONGEST = 12000 };

/* What a batch may have side by side: shapes, types, lengths from one token on, settings, numbers of queries. */
static const struct {
    size_t tokens, query_heads, kv_heads, dim, n_queries;
    dp_type type;
    dp_method method;
    int dense_layer, lse;
} kinds[REQUESTS] = {
    {1, 4, 4, 64, 1, DP_BF16, DP_DOUBLE_P, 0, 1},       {300, 8, 2, 128, 3, DP_F16, DP_DOUBLE_P, 0, 0},
    {LONGEST, 4, 2, 64, 1, DP_BF16, DP_DOUBLE_P, 0, 1}, {3000, 8, 1, 64, 5, DP_F32, DP_DOUBLE_P, 0, 1},
    {3000, 6, 3, 96, 1, DP_BF16, DP_DENSE, 0, 0},       {2500, 4, 2, 64, 2, DP_BF16, DP_DOUBLE_P, 1, 0},
    {5000, 16, 8, 64, 1, DP_F16, DP_DOUBLE_P, 0, 1},    {70, 2, 1, 256, 1, DP_BF16, DP_DOUBLE_P, 0, 1},
    {4000, 2, 2, 64, 4, DP_BF16, DP_DOUBLE_P, 0, 1},    {2800, 8, 2, 72, 2, DP_INT8, DP_DOUBLE_P, 0, 1},
};
enum { MOST_HEADS = 16, MOST_OUT = QUERIES * 1024 };

typedef struct fixture {
    dp_runtime *rt;
    cache c[REQUESTS];
    dp_sequence *s[REQUESTS];
    dp_attention_params params[REQUESTS];
    dp_attention_stats stats[REQUESTS];
    float *q[REQUESTS];
    float out[REQUESTS][MOST_OUT], lse[REQUESTS][QUERIES * MOST_HEADS];
    dp_decode_request requests[REQUESTS];
} fixture;

static fixture *setup(int n_threads, dp_isa isa)
{
    fixture *const f = calloc(1, sizeof *f);
    rng r = {61};
    f->rt = runtime_with(n_threads, isa);
    for (size_t i = 0; i < REQUESTS; i++) {
        f->c[i] = cache_create(&r, kinds[i].tokens, kinds[i].kv_heads, kinds[i].dim, kinds[i].dim, kinds[i].type);
        dp_sequence_config config = sequence_config(&f->c[i], kinds[i].query_heads, kinds[i].type);
        config.n_layers = 2;
        config.segment_tokens = 2048;
        config.softcap = i % 3 == 1 ? 10 : 0;
        const uint32_t layer = i % 2;
        ck_assert_int_eq(dp_sequence_create(f->rt, &config, &f->s[i]), DP_OK);
        ck_assert_int_eq(dp_sequence_set_dense(f->s[i], layer, kinds[i].dense_layer), DP_OK);
        ck_assert_int_eq(dp_append(f->s[i], layer, kinds[i].tokens, f->c[i].k, 0, f->c[i].v, 0), DP_OK);
        ck_assert_int_eq(dp_build_index(f->s[i], DP_ALL_LAYERS), DP_OK);
        f->q[i] = malloc(kinds[i].n_queries * kinds[i].query_heads * kinds[i].dim * sizeof(float));
        make_queries(&r, &f->c[i], kinds[i].n_queries, kinds[i].query_heads, f->q[i]);
        dp_attention_params_init(&f->params[i]);
        f->params[i].method = kinds[i].method;
        f->params[i].epsilon = 0.02f * (float)(i + 1);
        if (i == 6) dp_attention_params_init_paper(&f->params[i]);
        dp_attention_stats_init(&f->stats[i]);
        dp_decode_request_init(&f->requests[i]);
        f->requests[i].sequence = f->s[i];
        f->requests[i].layer = layer;
        f->requests[i].n_queries = kinds[i].n_queries;
        f->requests[i].q = f->q[i];
        f->requests[i].params = i == 2 ? NULL : &f->params[i];
        f->requests[i].out = f->out[i];
        f->requests[i].lse = kinds[i].lse ? f->lse[i] : NULL;
        f->requests[i].stats = i == 3 ? NULL : &f->stats[i];
    }
    return f;
}

static void teardown(fixture *f)
{
    for (size_t i = 0; i < REQUESTS; i++) {
        dp_sequence_free(f->s[i]);
        cache_free(&f->c[i]);
        free(f->q[i]);
    }
    dp_runtime_free(f->rt);
    free(f);
}

static size_t out_floats(size_t i)
{
    return kinds[i].n_queries * kinds[i].query_heads * kinds[i].dim;
}

/* One request alone. */
static void single(const fixture *f, size_t i, float *out, float *lse, dp_attention_stats *stats)
{
    const dp_decode_request *const r = &f->requests[i];
    dp_attention_stats_init(stats);
    ck_assert_int_eq(dp_decode(r->sequence, r->layer, r->n_queries, r->q, r->params, out, lse, stats), DP_OK);
    stats->ns_score = stats->ns_select = stats->ns_scan = stats->ns_gather = stats->ns_merge = 0;
}

START_TEST(same_bits_as_single_calls)
{
    static const int threads[] = {1, 2, 3, 7, 16};
    fixture *const f = setup(threads[_i % 5], _i < 5 ? DP_ISA_AUTO : DP_ISA_SCALAR);
    int sparse = 0;
    for (int round = 0; round < 3; round++) { /* all, a few, all again: scratch is used by calls of other sizes */
        const size_t first = round == 1 ? 2 : 0, n = round == 1 ? 4 : REQUESTS;
        memset(f->out, 0xff, sizeof f->out);
        ck_assert_int_eq(dp_decode_batch(f->rt, n, f->requests + first), DP_OK);
        for (size_t i = first; i < first + n; i++) {
            static float out[MOST_OUT], lse[QUERIES * MOST_HEADS];
            dp_attention_stats stats, *const own = &f->stats[i];
            single(f, i, out, lse, &stats);
            ck_assert_mem_eq(f->out[i], out, out_floats(i) * sizeof *out);
            if (kinds[i].lse)
                ck_assert_mem_eq(f->lse[i], lse, kinds[i].n_queries * kinds[i].query_heads * sizeof *lse);
            if (i == 3) continue;
            ck_assert_uint_gt(own->ns_score + own->ns_select + own->ns_gather + own->ns_merge, 0);
            own->ns_score = own->ns_select = own->ns_scan = own->ns_gather = own->ns_merge = 0;
            ck_assert_mem_eq(own, &stats, sizeof stats);
            sparse += stats.sparse;
        }
    }
    ck_assert_int_gt(sparse, 6);
    teardown(f);
}
END_TEST

/* The same sequence several times, and its fork. */
START_TEST(one_sequence_many_requests)
{
    fixture *const f = setup(3, DP_ISA_AUTO);
    dp_sequence *fork;
    ck_assert_int_eq(dp_sequence_fork(f->s[2], &fork), DP_OK);
    for (size_t i = 0; i < 4; i++) {
        f->requests[i] = f->requests[2];
        f->requests[i].out = f->out[i];
        f->requests[i].lse = NULL;
        f->requests[i].stats = NULL;
    }
    f->requests[1].sequence = fork;
    f->requests[3].params = &f->params[4]; /* dense */
    ck_assert_int_eq(dp_decode_batch(f->rt, 4, f->requests), DP_OK);
    ck_assert_mem_eq(f->out[1], f->out[0], out_floats(2) * sizeof(float));
    ck_assert_mem_eq(f->out[2], f->out[0], out_floats(2) * sizeof(float));
    ck_assert_mem_ne(f->out[3], f->out[0], out_floats(2) * sizeof(float));
    dp_sequence_free(fork);
    teardown(f);
}
END_TEST

/* A caller's struct of a later version is refused, one of an earlier version (without stats) is walked in its own steps. */
START_TEST(structs_of_other_versions)
{
    enum { OLD = offsetof(dp_decode_request, stats) };
    fixture *const f = setup(2, DP_ISA_AUTO);
    _Alignas(dp_decode_request) char old[3 * OLD];
    static float wanted[3][MOST_OUT];
    for (size_t i = 0; i < 3; i++) {
        dp_attention_stats stats;
        single(f, i, wanted[i], NULL, &stats);
        dp_decode_request r = f->requests[i];
        r.struct_size = OLD;
        memcpy(old + i * OLD, &r, OLD);
    }
    ck_assert_int_eq(dp_decode_batch(f->rt, 3, (const dp_decode_request *)(const void *)old), DP_OK);
    for (size_t i = 0; i < 3; i++) ck_assert_mem_eq(f->out[i], wanted[i], out_floats(i) * sizeof(float));
    f->requests[1].struct_size = OLD; /* not all alike */
    ck_assert_int_eq(dp_decode_batch(f->rt, 2, f->requests), DP_ERR_INVALID);
    f->requests[0].struct_size = sizeof *f->requests + 8;
    ck_assert_int_eq(dp_decode_batch(f->rt, 1, f->requests), DP_ERR_INVALID);
    f->requests[0].struct_size = 0;
    ck_assert_int_eq(dp_decode_batch(f->rt, 1, f->requests), DP_ERR_INVALID);
    teardown(f);
}
END_TEST

/* One bad request: nobody's output is touched, and the message names it. */
START_TEST(all_or_nothing)
{
    fixture *const f = setup(2, DP_ISA_AUTO);
    static float untouched[REQUESTS][MOST_OUT];
    dp_runtime *const other = runtime_with(1, DP_ISA_AUTO);
    char text[256];
    memset(f->out, 0x5a, sizeof f->out);
    memcpy(untouched, f->out, sizeof untouched);
#define REFUSED(request, field, value, words)                                                                          \
    do {                                                                                                               \
        const dp_decode_request good = f->requests[request];                                                           \
        f->requests[request].field = value;                                                                            \
        ck_assert_int_eq(dp_decode_batch(f->rt, REQUESTS, f->requests), DP_ERR_INVALID);                               \
        dp_last_error(f->rt, text, sizeof text);                                                                       \
        ck_assert_msg(strstr(text, "dp_decode_batch: request " #request ": " words) != NULL, "message \"%s\"", text);  \
        ck_assert_mem_eq(f->out, untouched, sizeof untouched);                                                         \
        f->requests[request] = good;                                                                                   \
    } while (0)
    REFUSED(8, sequence, NULL, "sequence is NULL");
    REFUSED(4, layer, 2, "layer 2 of 2");
    REFUSED(0, q, NULL, "q or out is NULL");
    REFUSED(3, n_queries, 65, "n_queries is 65");
    REFUSED(0, n_queries, 2, "n_queries is 2, but only the last 1 tokens");
    f->params[5].p1 = 2;
    REFUSED(5, layer, 1, "p1 is 2");
    f->params[5].p1 = 1;
    f->stats[6].struct_size = 1;
    REFUSED(6, layer, 0, "stats->struct_size is 1");
    dp_attention_stats_init(&f->stats[6]);
#undef REFUSED
    ck_assert_int_eq(dp_decode_batch(other, 1, f->requests), DP_ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(dp_last_error(other, text, sizeof text), "another runtime"));
    ck_assert_int_eq(dp_decode_batch(NULL, 1, f->requests), DP_ERR_INVALID);
    ck_assert_int_eq(dp_decode_batch(f->rt, 1, NULL), DP_ERR_INVALID);
    ck_assert_int_eq(dp_decode_batch(f->rt, 0, NULL), DP_OK);
    ck_assert_mem_eq(f->out, untouched, sizeof untouched);
    dp_runtime_free(other);
    teardown(f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("batch");
    TCase *const tc = tcase_create("batch");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, same_bits_as_single_calls, 0, 10);
    tcase_add_test(tc, one_sequence_many_requests);
    tcase_add_test(tc, structs_of_other_versions);
    tcase_add_test(tc, all_or_nothing);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
