/* The interface: bad input gets its error and message and changes nothing; old structs are taken; ISA by environment. */
#include <math.h>
#include <string.h>

#include "unit.h"

static void expect(const dp_runtime *rt, dp_status got, dp_status wanted, const char *words)
{
    char text[256];
    ck_assert_int_eq(got, wanted);
    dp_last_error(rt, text, sizeof text);
    ck_assert_msg(strstr(text, words) != NULL, "message \"%s\" does not say \"%s\"", text, words);
}

START_TEST(runtime_errors)
{
    dp_runtime *rt = (dp_runtime *)1;
    dp_runtime_config c;
    expect(NULL, dp_runtime_create(NULL, NULL), DP_ERR_INVALID, "runtime is NULL");
    dp_runtime_config_init(&c);
    c.n_threads = -1;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_INVALID, "n_threads is -1");
    ck_assert_ptr_null(rt);
    dp_runtime_config_init(&c);
    c.pinning = (dp_pinning)9;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_INVALID, "pinning");
    dp_runtime_config_init(&c);
    c.isa = (dp_isa)77;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_INVALID, "isa");
#if defined(__x86_64__)
    dp_runtime_config_init(&c);
    c.isa = DP_ISA_NEON;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_UNSUPPORTED, "neon");
#endif
    dp_runtime_config_init(&c);
    c.struct_size = 0;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_INVALID, "struct_size");
    c.struct_size = sizeof c + 4;
    expect(NULL, dp_runtime_create(&c, &rt), DP_ERR_INVALID, "struct_size");
    c.struct_size = 8; /* an older, shorter struct: the rest takes defaults */
    c.n_threads = 1;
    c.isa = (dp_isa)77;
    ck_assert_int_eq(dp_runtime_create(&c, &rt), DP_OK);
    dp_runtime_free(rt);
    dp_runtime_free(NULL);
}
END_TEST

START_TEST(isa_by_environment)
{
    dp_runtime *rt;
    ck_assert_int_eq(setenv("DOUBLEP_ISA", "quantum", 1), 0);
    expect(NULL, dp_runtime_create(NULL, &rt), DP_ERR_INVALID, "quantum");
    ck_assert_int_eq(setenv("DOUBLEP_ISA", "scalar", 1), 0);
    ck_assert_int_eq(dp_runtime_create(NULL, &rt), DP_OK);
    const dp_runtime_info info = info_of(rt);
    ck_assert_int_eq(info.isa, DP_ISA_SCALAR);
    ck_assert_str_eq(dp_isa_name(info.isa), "scalar");
    ck_assert_int_gt(info.n_threads, 0);
    ck_assert_int_gt(info.n_cores, 0);
    ck_assert(info.isas_available & 1u << DP_ISA_SCALAR);
    dp_runtime_free(rt);
    ck_assert_int_eq(unsetenv("DOUBLEP_ISA"), 0);
}
END_TEST

START_TEST(sequence_config_errors)
{
    dp_runtime *const rt = runtime_with(1, DP_ISA_AUTO);
    dp_sequence *s = (dp_sequence *)1;
    dp_sequence_config c;
#define REFUSED(field, value, words)                                                        \
    do {                                                                                    \
        dp_sequence_config_init(&c);                                                        \
        c.field = value;                                                                    \
        expect(rt, dp_sequence_create(rt, &c, &s), DP_ERR_INVALID, words);                  \
        ck_assert_ptr_null(s);                                                              \
    } while (0)
    REFUSED(n_layers, 0, "n_layers is 0");
    REFUSED(n_query_heads, 0, "n_query_heads");
    REFUSED(n_kv_heads, 3, "no multiple");
    REFUSED(key_dim, 60, "multiples of 8");
    REFUSED(value_dim, 520, "value_dim is 520");
    REFUSED(key_dim, 0, "key_dim");
    REFUSED(type, (dp_type)17, "type");
    REFUSED(scale, -1.0f, "scale");
    REFUSED(scale, NAN, "scale");
    REFUSED(softcap, -1.0f, "softcap is -1, must be positive, or 0 for none");
    REFUSED(softcap, NAN, "softcap");
    REFUSED(softcap, INFINITY, "softcap");
    REFUSED(tokens_per_cluster, 3, "tokens_per_cluster");
    REFUSED(segment_tokens, 70000, "segment_tokens");
    REFUSED(pending_tokens, 1, "pending_tokens");
    REFUSED(iterations, 0, "iterations");
    REFUSED(outlier_share, 0.6f, "outlier_share");
    REFUSED(cluster_growth, 1.1f, "cluster_growth");
    REFUSED(cluster_growth, NAN, "cluster_growth");
    REFUSED(outlier_share, NAN, "outlier_share");
    REFUSED(clustering, (dp_clustering)5, "clustering");
    REFUSED(struct_size, 1000, "struct_size");
#undef REFUSED
    expect(rt, dp_sequence_create(rt, NULL, &s), DP_ERR_INVALID, "config is NULL");
    dp_sequence_config_init(&c);
    expect(rt, dp_sequence_create(rt, &c, NULL), DP_ERR_INVALID, "sequence is NULL");
    expect(NULL, dp_sequence_create(NULL, &c, &s), DP_ERR_INVALID, "runtime is NULL");
    dp_runtime_free(rt);
}
END_TEST

/* Every refused call leaves the sequence as it was: decoding gives the same bits before and after. */
START_TEST(refused_calls_change_nothing)
{
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    rng r = {1};
    cache c = cache_create(&r, 3000, 2, 64, 64, DP_F16);
    dp_sequence_config config = sequence_config(&c, 4, DP_F16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    float q[4 * 64], out[4 * 64], again[4 * 64];
    make_queries(&r, &c, 1, 4, q);
    expect(rt, dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_ERR_INVALID, "layer 0 has no tokens");
    expect(rt, dp_prefill(s, 0, 1, q, out, NULL), DP_ERR_INVALID, "layer 0 has no tokens");
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK); /* nothing to do */
    append(s, &c, 0, 3000, 500);
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);

    expect(rt, dp_append(s, 1, 1, c.k, 0, c.v, 0), DP_ERR_INVALID, "layer 1 of 1");
    expect(rt, dp_append(s, 0, 0, c.k, 0, c.v, 0), DP_ERR_INVALID, "n_tokens is 0");
    expect(rt, dp_append(s, 0, 1, NULL, 0, c.v, 0), DP_ERR_INVALID, "NULL");
    expect(rt, dp_append(s, 0, 1, c.k, 3, c.v, 0), DP_ERR_INVALID, "strides");
    expect(rt, dp_append(s, 0, UINT32_MAX, c.k, 0, c.v, 0), DP_ERR_INVALID, "too many");
    expect(rt, dp_append(s, 0, 1, c.k, SIZE_MAX / 2, c.v, 0), DP_ERR_INVALID, "too long");
    expect(NULL, dp_append(NULL, 0, 1, c.k, 0, c.v, 0), DP_ERR_INVALID, "sequence is NULL");
    const char *const odd = (const char *)c.k + 1;
    expect(rt, dp_append_typed(s, 0, 1, DP_TYPE_COUNT, c.k, 0, c.v, 0), DP_ERR_INVALID, "type is 4");
    expect(rt, dp_append_typed(s, 0, 1, (dp_type)-1, c.k, 0, c.v, 0), DP_ERR_INVALID, "type is -1");
    expect(rt, dp_append_typed(s, 0, 1, DP_F16, odd, 0, c.v, 0), DP_ERR_INVALID, "multiples of 2 bytes");
    expect(rt, dp_append_typed(s, 0, 1, DP_INT8, c.k, 2 * 68, c.v, 2 * 68 + 2), DP_ERR_INVALID, "multiples of 4 bytes");
    expect(rt, dp_append_typed(s, 0, 1, DP_BF16, c.k, 2 * 128 - 2, c.v, 0), DP_ERR_INVALID, "dp_append_typed: strides");
    expect(rt, dp_append_typed(s, 1, 1, DP_BF16, c.k, 0, c.v, 0), DP_ERR_INVALID, "dp_append_typed: layer 1 of 1");
    expect(NULL, dp_append_typed(NULL, 0, 1, DP_F16, c.k, 0, c.v, 0), DP_ERR_INVALID, "sequence is NULL");
    expect(rt, dp_decode(s, 2, 1, q, NULL, out, NULL, NULL), DP_ERR_INVALID, "layer 2");
    expect(rt, dp_decode(s, 0, 0, q, NULL, out, NULL, NULL), DP_ERR_INVALID, "n_queries is 0");
    expect(rt, dp_decode(s, 0, 65, q, NULL, out, NULL, NULL), DP_ERR_INVALID, "n_queries is 65");
    expect(rt, dp_decode(s, 0, 1, NULL, NULL, out, NULL, NULL), DP_ERR_INVALID, "NULL");
    expect(rt, dp_prefill(s, 0, 65, q, out, NULL), DP_ERR_INVALID, "n_queries is 65");
    expect(rt, dp_build_index(s, 1), DP_ERR_INVALID, "layer 1");
    expect(NULL, dp_sequence_reserve(NULL, 1), DP_ERR_INVALID, "sequence is NULL");
    expect(rt, dp_sequence_reserve(s, (size_t)UINT32_MAX + 1), DP_ERR_INVALID, "too many");
    expect(rt, dp_sequence_read(s, 0, 0, 2999, 2, NULL, NULL), DP_ERR_INVALID, "tokens 2999");
    expect(rt, dp_sequence_read(s, 0, 2, 0, 1, NULL, NULL), DP_ERR_INVALID, "KV head 2");
    expect(rt, dp_sequence_set_dense(s, 1, 1), DP_ERR_INVALID, "layer 1");
    dp_attention_params p;
#define REFUSED(field, value, words)                                                              \
    do {                                                                                          \
        dp_attention_params_init(&p);                                                             \
        p.field = value;                                                                          \
        expect(rt, dp_decode(s, 0, 1, q, &p, again, NULL, NULL), DP_ERR_INVALID, words);          \
    } while (0)
    REFUSED(p1, 1.5f, "p1 is 1.5");
    REFUSED(p1, NAN, "p1");
    REFUSED(epsilon, -0.1f, "epsilon");
    REFUSED(method, (dp_method)4, "method");
    REFUSED(refine, (dp_refine)4, "refine");
    REFUSED(struct_size, 2, "struct_size");
#undef REFUSED
    dp_attention_params_init_paper(&p);
    p.p2 = 0.99f;
    expect(rt, dp_decode(s, 0, 1, q, &p, again, NULL, NULL), DP_ERR_INVALID, "p2");
    dp_attention_stats stats = {.struct_size = 1};
    expect(rt, dp_decode(s, 0, 1, q, NULL, again, NULL, &stats), DP_ERR_INVALID, "stats");
    dp_memory m = {.struct_size = 0};
    expect(rt, dp_sequence_memory(s, &m), DP_ERR_INVALID, "struct_size");

    ck_assert_uint_eq(dp_sequence_tokens(s, 0), 3000);
    ck_assert_uint_eq(dp_sequence_tokens(s, 5), 0);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, again, NULL, NULL), DP_OK);
    ck_assert_mem_eq(again, out, sizeof out);
    dp_sequence_free(s);
    dp_sequence_free(NULL);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

START_TEST(words)
{
    for (int status = 1; status >= -6; status--) ck_assert_ptr_nonnull(dp_strerror((dp_status)status));
    ck_assert_str_eq(dp_strerror(DP_OK), "success");
    ck_assert_uint_eq(dp_version(), DP_VERSION_NUMBER);
    char text[4];
    dp_runtime *rt;
    ck_assert_int_ne(dp_runtime_create(&(dp_runtime_config){0}, &rt), DP_OK);
    dp_last_error(NULL, text, sizeof text); /* a short buffer gets a terminated beginning */
    ck_assert_uint_eq(strlen(text), 3);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("api");
    TCase *const tc = tcase_create("api");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, runtime_errors);
    tcase_add_test(tc, isa_by_environment);
    tcase_add_test(tc, sequence_config_errors);
    tcase_add_test(tc, refused_calls_change_nothing);
    tcase_add_test(tc, words);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
