/* What all compared methods have in common: with everything allowed they are dense attention, an index serves several
 * settings, and settings have names. */
#include <stdio.h>

#include "baselines.h"
#include "select.h"

static const struct {
    const method_type *type;
    const char *everything; /* settings that read it all */
} whole[] = {
    {&method_dense, ""},
    {&method_double_p, "p1=1:epsilon=0:min_context=0:segment_tokens=256"},
    {&method_double_p_paper, "p1=1:p2=1:min_context=0"},
    {&method_retroinfer, "exact=1:estimated=0:segment_tokens=256:pending_tokens=16"},
    {&method_quest, "share=1"},
    {&method_quest_twilight, "share=1:p=1"},
    {&method_oracle, "p=1"},
};
enum { N_WHOLE = sizeof(whole) / sizeof(whole[0]) };

START_TEST(everything_is_dense_attention)
{
    fixture f = fixture_create((dp_type)_i, 3, PROMPT);
    static uint8_t kept[KV_HEADS * ALL];
    for (size_t m = 0; m < N_WHOLE; m++) {
        method_cache_truncate(f.cache, PROMPT);
        void *const state = create(whole[m].type, &f, whole[m].everything);
        grow(whole[m].type, state, &f, PROMPT, ALL);
        const method_report report = attend(whole[m].type, state, &f);
        dense(&f, ALL);
        const double error = relative_error(f.out, f.want, f.n_heads * VALUE_DIM);
        ck_assert_msg(error < 2e-6, "%s: error %g", whole[m].type->name, error);
        ck_assert_uint_eq(report.bytes_rows, method_cache_dense_bytes(f.cache, 0));
        mark(whole[m].type, state, kept);
        for (size_t i = 0; i < KV_HEADS * ALL; i++)
            ck_assert_msg(kept[i] == 1, "%s: token %zu is not kept", whole[m].type->name, i);
        whole[m].type->free(state);
    }
    fixture_free(&f);
}
END_TEST

static const struct {
    const method_type *type;
    const char *before, *after; /* settings with the same index */
} restarts[] = {
    {&method_double_p, "epsilon=0.3:min_context=0:segment_tokens=256", "epsilon=0.05:min_context=0:segment_tokens=256"},
    {&method_double_p, "epsilon=0.3:min_context=0:pending_tokens=64", /* some of the growth is clustered */
     "epsilon=0.05:min_context=0:pending_tokens=64"},
    {&method_retroinfer, "exact=0.1:pending_tokens=32", "exact=0.05:estimated=0.3:pending_tokens=32"},
    {&method_quest, "share=0.5", "share=0.1"},
    {&method_quest_twilight, "share=0.5:p=0.5", "share=0.3:p=0.8"},
    {&method_oracle, "p=0.5", "p=0.9"},
};

START_TEST(restarted_state_is_a_new_one)
{
    fixture f = fixture_create(DP_BF16, 2, PROMPT);
    const method_type *const type = restarts[_i].type;
    void *const settings = settings_of(type, restarts[_i].after);
    float fresh[16 * VALUE_DIM];
    void *const other = create(type, &f, restarts[_i].after);
    grow(type, other, &f, PROMPT, ALL);
    const method_report want = attend(type, other, &f);
    memcpy(fresh, f.out, sizeof(fresh));
    type->free(other);

    method_cache_truncate(f.cache, PROMPT);
    void *const state = create(type, &f, restarts[_i].before);
    grow(type, state, &f, PROMPT, ALL);
    attend(type, state, &f);
    ck_assert(memcmp(fresh, f.out, f.n_heads * VALUE_DIM * sizeof(float)) != 0);
    method_cache_truncate(f.cache, PROMPT);
    ck_assert(type->restart(state, settings));
    grow(type, state, &f, PROMPT, ALL);
    const method_report got = attend(type, state, &f);
    ck_assert_mem_eq(fresh, f.out, f.n_heads * VALUE_DIM * sizeof(float));
    ck_assert_uint_eq(want.bytes_index, got.bytes_index);
    ck_assert_uint_eq(want.bytes_rows, got.bytes_rows);
    type->free(state);
    free(settings);
    fixture_free(&f);
}
END_TEST

/* Where the prompt itself was clustered since, in a layer that was dense before, Double-P's index is another one, and it
 * says so. */
/* Without a copy of the cache the library attends to the same bits. */
START_TEST(borrowed_rows_are_no_difference)
{
    fixture f = fixture_create((dp_type)_i, 2, PROMPT);
    float want[16 * VALUE_DIM];
    method_report reports[2];
    for (int borrowed = 0; borrowed < 2; borrowed++) {
        method_cache_truncate(f.cache, PROMPT);
        void *const state = create(&method_double_p, &f, borrowed ? "min_context=0:borrowed=1" : "min_context=0");
        grow(&method_double_p, state, &f, PROMPT, ALL);
        reports[borrowed] = attend(&method_double_p, state, &f);
        if (!borrowed)
            memcpy(want, f.out, sizeof(want));
        method_double_p.free(state);
    }
    ck_assert_mem_eq(want, f.out, f.n_heads * VALUE_DIM * sizeof(float));
    ck_assert_uint_eq(reports[0].bytes_rows, reports[1].bytes_rows);
    ck_assert_uint_eq(reports[0].bytes_index, reports[1].bytes_index);
    ck_assert_uint_lt(reports[1].bytes_rows, method_cache_dense_bytes(f.cache, 0));
    fixture_free(&f);
}
END_TEST

/* A type of the method's own: near dense attention over the cache's rows, for the bytes of its own. */
START_TEST(rows_of_another_type)
{
    fixture f = fixture_create(DP_BF16, 2, PROMPT);
    void *const state = create(&method_dense, &f, "kv=int8");
    grow(&method_dense, state, &f, PROMPT, ALL);
    const method_report report = attend(&method_dense, state, &f);
    dense(&f, ALL);
    const double error = relative_error(f.out, f.want, f.n_heads * VALUE_DIM);
    ck_assert_msg(error > 1e-4 && error < 0.03, "error %g", error);
    ck_assert_uint_eq(report.bytes_rows, (size_t)ALL * KV_HEADS * (KEY_DIM + VALUE_DIM + 2 * sizeof(float)));
    method_dense.free(state);
    void *const other = settings_of(&method_dense, "kv=int8"), *const same = settings_of(&method_dense, "kv=cache");
    ck_assert(!method_is_reference(&method_dense, other) && method_is_reference(&method_dense, same));
    void *const borrowed = settings_of(&method_double_p, "kv=int8:borrowed=1");
    ck_assert_ptr_nonnull(method_double_p.check(borrowed, f.cache));
    free(other), free(same), free(borrowed);
    fixture_free(&f);
}
END_TEST

START_TEST(other_index_is_not_restarted)
{
    fixture f = fixture_create(DP_BF16, 2, PROMPT);
    void *const settings = settings_of(&method_double_p, "pending_tokens=64");
    void *const state = create(&method_double_p, &f, "dense_layers=0:pending_tokens=64");
    ck_assert(method_double_p.restart(state, settings));
    grow(&method_double_p, state, &f, PROMPT, ALL);
    method_cache_truncate(f.cache, PROMPT);
    ck_assert(!method_double_p.restart(state, settings));
    method_double_p.free(state);
    free(settings);
    fixture_free(&f);
}
END_TEST

START_TEST(largest_of_many)
{
    rng r = {_i + 1};
    float x[300], work[300];
    uint8_t chosen[300];
    const size_t n = 1 + (size_t)(rng_uniform(&r) * 299), wanted = (size_t)(rng_uniform(&r) * (float)(n + 1));
    for (size_t i = 0; i < n; i++)
        x[i] = _i % 2 ? floorf(rng_uniform(&r) * 5) : rng_normal(&r); /* with many equals, and without */
    memset(chosen, 0, sizeof(chosen));
    select_largest(x, n, wanted, work, chosen);
    size_t count = 0;
    float least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        count += chosen[i];
        least = chosen[i] && x[i] < least ? x[i] : least;
        most = !chosen[i] && x[i] > most ? x[i] : most;
    }
    ck_assert_uint_eq(count, wanted);
    ck_assert(least >= most);
}
END_TEST

START_TEST(settings_by_name)
{
    char error[400], text[64];
    void *const a = settings_of(&method_double_p, "epsilon=0.1:outlier_share=0.25:refine=top-p:dense_layers=0+3");
    void *const b = settings_of(&method_double_p, "epsilon=0.2:outlier_share=0.25");
    void *const c = settings_of(&method_double_p, "outlier_share=0.125");
    ck_assert(method_same_index(&method_double_p, a, b));
    ck_assert(!method_same_index(&method_double_p, a, c));
    static const char *const wrong[] = {"eps=1", "epsilon", "epsilon=", "epsilon=x", "epsilon=1x", "epsilon=nan",
                                        "iterations=-1", "iterations=5000000000", "refine=best", "dense_layers=1+", ""};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        error[0] = '\0';
        ck_assert_msg(!method_set(&method_double_p, a, wrong[i], strlen(wrong[i]), error, sizeof(error)), "%s", wrong[i]);
        ck_assert_str_ne(error, "");
    }
    for (size_t i = 0; i < method_double_p.n_fields; i++) { /* what is read back is what was set, and can be set */
        const method_field *const field = &method_double_p.fields[i];
        char assignment[128];
        method_get(field, a, text, sizeof(text));
        snprintf(assignment, sizeof(assignment), "%s=%s", field->name, text);
        ck_assert(method_set(&method_double_p, c, assignment, strlen(assignment), error, sizeof(error)));
    }
    ck_assert_mem_eq(a, c, method_double_p.settings_bytes);
    ck_assert_ptr_eq(method_find("quest+twilight", 14), &method_quest_twilight);
    ck_assert_ptr_null(method_find("ques", 4));
    free(a);
    free(b);
    free(c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("methods");
    TCase *const cases = tcase_create("methods");
    tcase_set_timeout(cases, 120);
    tcase_add_loop_test(cases, everything_is_dense_attention, 0, DP_TYPE_COUNT);
    tcase_add_loop_test(cases, restarted_state_is_a_new_one, 0, sizeof(restarts) / sizeof(restarts[0]));
    tcase_add_loop_test(cases, borrowed_rows_are_no_difference, 0, DP_TYPE_COUNT);
    tcase_add_test(cases, rows_of_another_type);
    tcase_add_test(cases, other_index_is_not_restarted);
    tcase_add_loop_test(cases, largest_of_many, 0, 60);
    tcase_add_test(cases, settings_by_name);
    suite_add_tcase(suite, cases);
    return run_suite(suite);
}
