/* Snapshots: a loaded sequence is the saved one, bit for bit, at once and after any growth, and shares, shrinks and is freed
 * like any other; limits hold; a save is all or nothing, whoever loads meanwhile. Bad files: test_snapshot_files.c. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "scratch.h"
#include "unit.h"

enum { LAYERS = 3, DENSE = 1, HEADS = 4, KV_HEADS = 2, PROMPT = 3000, GROWTH = 5000, WIDEST = 512, QUERIES = 3 };

typedef struct fixture {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    dp_sequence *s;
    const char *path;
} fixture;

static void append_all(const fixture *f, dp_sequence *s, size_t first, size_t last, size_t chunk)
{
    for (uint32_t l = 0; l < LAYERS; l++) append_to(s, l, &f->c, first, last, chunk);
}

static fixture setup(dp_type type, size_t key_dim, size_t value_dim, uint32_t sink, int32_t n_threads)
{
    fixture f = {.r = {83}, .path = scratch_path("snapshot")};
    f.c = cache_create(&f.r, PROMPT + GROWTH, KV_HEADS, key_dim, value_dim, type);
    f.rt = runtime_with(n_threads, DP_ISA_AUTO);
    f.config = sequence_config(&f.c, HEADS, type);
    f.config.n_layers = LAYERS;
    f.config.segment_tokens = 1024;
    f.config.pending_tokens = 256;
    f.config.sink = sink;
    f.config.softcap = sink % 2 ? 10 : 0;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &f.s), DP_OK);
    ck_assert_int_eq(dp_sequence_set_dense(f.s, DENSE, 1), DP_OK);
    return f;
}

static void teardown(fixture *f)
{
    dp_sequence_free(f->s);
    runtime_end(f->rt);
    cache_free(&f->c);
}

static void observe(const fixture *f, dp_sequence *s, uint32_t layer)
{
    static float q[100 * HEADS * WIDEST];
    rng r = {19};
    make_queries(&r, &f->c, 100, HEADS, q);
    ck_assert_int_eq(dp_observe_queries(s, layer, 100, q), DP_OK);
}

/* A prompt that was read, and some of an answer: every layer has something else. */
static fixture after_prompt(dp_type type, size_t key_dim, size_t value_dim, uint32_t sink)
{
    fixture f = setup(type, key_dim, value_dim, sink, 2);
    observe(&f, f.s, 0);
    append_all(&f, f.s, 0, PROMPT - 100, 500);
    ck_assert_int_eq(dp_build_index(f.s, 2), DP_OK);
    append_all(&f, f.s, PROMPT - 100, PROMPT, 1);
    return f;
}

static void save(const fixture *f, const dp_sequence *s)
{
    ck_assert_int_eq(dp_sequence_save(s, f->path, "prompt", 7), DP_OK);
}

static dp_sequence *load(const fixture *f, int32_t map, int32_t verify)
{
    dp_load_options options;
    dp_load_options_init(&options);
    char note[16] = "";
    size_t note_bytes = 0;
    options.map = map;
    options.verify = verify;
    options.config = &f->config;
    options.note = note;
    options.note_size = sizeof note;
    options.note_bytes = &note_bytes;
    dp_sequence *s;
    char why[256];
    ck_assert_msg(dp_sequence_load(f->rt, f->path, &options, &s) == DP_OK, "%s", dp_last_error(f->rt, why, sizeof why));
    ck_assert_uint_eq(note_bytes, 7);
    ck_assert_str_eq(note, "prompt");
    return s;
}

static void check_same(const fixture *f, dp_sequence *a, dp_sequence *b)
{
    static float q[QUERIES * HEADS * WIDEST], x[QUERIES * HEADS * WIDEST], y[QUERIES * HEADS * WIDEST];
    rng r = {5};
    make_queries(&r, &f->c, QUERIES, HEADS, q);
    for (uint32_t l = 0; l < LAYERS; l++) {
        ck_assert_uint_eq(dp_sequence_tokens(a, l), dp_sequence_tokens(b, l));
        if (dp_sequence_tokens(a, l) < QUERIES) continue;
        float lse[2][QUERIES * HEADS];
        dp_attention_stats stats[2];
        for (int i = 0; i < 2; i++) {
            dp_attention_stats_init(&stats[i]);
            ck_assert_int_eq(dp_decode(i ? b : a, l, QUERIES, q, NULL, i ? y : x, lse[i], &stats[i]), DP_OK);
        }
        ck_assert_mem_eq(x, y, QUERIES * HEADS * f->c.value_dim * sizeof *x);
        ck_assert_mem_eq(lse[0], lse[1], sizeof lse[0]);
        ck_assert_uint_eq(stats[0].bytes, stats[1].bytes);
        ck_assert_int_eq(stats[0].sparse, stats[1].sparse);
    }
    const dp_memory m = memory_of(a), n = memory_of(b);
    ck_assert_uint_eq(m.clusters, n.clusters);
    ck_assert_uint_eq(m.clustered_tokens, n.clustered_tokens);
}

static void check_same_files(const char *a, const char *b)
{
    size_t n_a, n_b;
    char *const x = scratch_read(a, &n_a), *const y = scratch_read(b, &n_b);
    ck_assert_uint_eq(n_a, n_b);
    ck_assert_mem_eq(x, y, n_a);
    free(x);
    free(y);
}

/* Every type and odd shapes. The second save of what was loaded says more than any number of answers. */
START_TEST(grows_to_the_same_bits)
{
    static const struct {
        size_t key_dim, value_dim;
        uint32_t sink;
    } shapes[] = {{64, 64, 4}, {8, 8, 0}, {72, 40, 1}, {24, 136, 700}};
    const int shape = _i % 4, map = _i / 4 % 2;
    fixture f = after_prompt((dp_type)(_i / 8), shapes[shape].key_dim, shapes[shape].value_dim, shapes[shape].sink);
    ck_assert_uint_gt(memory_of(f.s).clusters, 0);
    save(&f, f.s);
    dp_sequence *const copy = load(&f, map, 1);
    check_same(&f, f.s, copy);
    const char *const again = scratch_path("again");
    ck_assert_int_eq(dp_sequence_save(copy, again, "prompt", 7), DP_OK);
    check_same_files(f.path, again);

    size_t t = PROMPT;
    for (const size_t half = PROMPT + GROWTH / 2; t < half; t += 125) { /* decoding */
        append_all(&f, f.s, t, t + 125, 25);
        append_all(&f, copy, t, t + 125, 25);
        if (t % 500 == 0) check_same(&f, f.s, copy);
    }
    append_all(&f, f.s, t, PROMPT + GROWTH, 600); /* another prompt */
    append_all(&f, copy, t, PROMPT + GROWTH, 600);
    check_same(&f, f.s, copy);
    save(&f, f.s);
    ck_assert_int_eq(dp_sequence_save(copy, again, "prompt", 7), DP_OK);
    check_same_files(f.path, again);
    ck_assert_int_eq(dp_sequence_truncate(f.s, DP_ALL_LAYERS, 1700), DP_OK); /* into what was loaded */
    ck_assert_int_eq(dp_sequence_truncate(copy, DP_ALL_LAYERS, 1700), DP_OK);
    append_all(&f, f.s, 1700, 2700, 20);
    append_all(&f, copy, 1700, 2700, 20);
    check_same(&f, f.s, copy);
    dp_sequence_free(copy);
    teardown(&f);
}
END_TEST

/* States on the way: nothing, sink only, waiting tokens and sums over queries that have not settled, a set index. */
START_TEST(any_state)
{
    static const size_t tokens[] = {0, 2, 4, 5, 600, PROMPT};
    fixture f = setup(DP_BF16, 64, 64, 4, 2);
    if (_i % 2) observe(&f, f.s, 0);
    if (tokens[_i / 2]) append_all(&f, f.s, 0, tokens[_i / 2], 300);
    save(&f, f.s);
    dp_sequence *const copy = load(&f, 1, _i % 3 > 0);
    check_same(&f, f.s, copy);
    observe(&f, f.s, 2); /* counts still, or not any more, in both */
    observe(&f, copy, 2);
    append_all(&f, f.s, tokens[_i / 2], PROMPT + 1000, 50);
    append_all(&f, copy, tokens[_i / 2], PROMPT + 1000, 50);
    ck_assert_int_eq(dp_build_index(f.s, DP_ALL_LAYERS), DP_OK);
    ck_assert_int_eq(dp_build_index(copy, DP_ALL_LAYERS), DP_OK);
    check_same(&f, f.s, copy);
    dp_sequence_free(copy);
    teardown(&f);
}
END_TEST

/* Forks share what was loaded; the figures add up to the byte, also when only a part is left. */
START_TEST(forks_and_figures)
{
    fixture f = after_prompt(DP_F16, 64, 64, 4);
    save(&f, f.s);
    dp_sequence *const copy = load(&f, _i, 1), *fork, *second;
    ck_assert_int_eq(dp_sequence_fork(copy, &fork), DP_OK);
    const dp_memory m = memory_of(copy);
    ck_assert_uint_gt(m.shared_bytes, m.index_bytes);
    for (size_t n = PROMPT; n > 550; n -= 550) {
        ck_assert_int_eq(dp_sequence_truncate(copy, DP_ALL_LAYERS, n), DP_OK);
        ck_assert_int_eq(dp_sequence_truncate(fork, DP_ALL_LAYERS, n - 50), DP_OK);
        append_all(&f, fork, n - 50, n, 1); /* in gaps of what was loaded, too */
        const dp_runtime_info info = info_of(f.rt);
        const dp_memory a = memory_of(f.s), b = memory_of(copy), c = memory_of(fork);
        ck_assert_uint_eq(b.shared_bytes, c.shared_bytes);
        ck_assert_uint_eq(info.memory_bytes,
                          a.reserved_bytes + b.reserved_bytes + c.reserved_bytes - c.shared_bytes + info.scratch_bytes);
    }
    ck_assert_int_eq(dp_sequence_fork(fork, &second), DP_OK);
    dp_sequence_free(copy);
    check_same(&f, fork, second);
    dp_sequence_free(fork);
    append_all(&f, second, dp_sequence_tokens(second, 0), PROMPT, 40);
    dp_sequence_free(second);
    teardown(&f);
}
END_TEST

START_TEST(freed_in_any_order)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    fixture f = after_prompt(DP_BF16, 64, 64, 4);
    save(&f, f.s);
    ck_assert_int_eq(remove(f.path), 0);
    save(&f, f.s);
    dp_sequence *s[3] = {load(&f, 1, 0)};
    ck_assert_int_eq(remove(f.path), 0); /* not needed any more */
    ck_assert_int_eq(dp_sequence_fork(s[0], &s[1]), DP_OK);
    append_all(&f, s[1], PROMPT, PROMPT + 700, 20);
    ck_assert_int_eq(dp_sequence_fork(s[1], &s[2]), DP_OK);
    append_all(&f, s[0], PROMPT, PROMPT + 700, 20);
    append_all(&f, f.s, PROMPT, PROMPT + 700, 20);
    for (int i = 0; i < 3; i++) {
        for (int j = i; j < 3; j++) check_same(&f, f.s, s[orders[_i][j]]);
        dp_sequence_free(s[orders[_i][i]]);
    }
    teardown(&f);
}
END_TEST

/* A limit that is too low: refused, in words, with nothing kept; any that suffices is kept to. */
START_TEST(limits)
{
    fixture f = after_prompt(DP_BF16, 64, 64, 4);
    save(&f, f.s);
    const uint64_t whole = memory_of(f.s).reserved_bytes;
    int refused = 0;
    bool done = false;
    for (uint64_t limit = 1000; !done; limit += limit / 4) {
        dp_runtime_config config;
        dp_runtime_config_init(&config);
        config.n_threads = 2;
        config.huge_pages = DP_HUGE_PAGES_OFF;
        config.memory_limit = limit;
        dp_runtime *rt;
        dp_sequence *copy;
        dp_load_options options;
        dp_load_options_init(&options);
        options.map = _i;
        ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
        const dp_status status = dp_sequence_load(rt, f.path, &options, &copy);
        done = status == DP_OK;
        if (!done) {
            char why[256];
            ck_assert_int_eq(status, DP_ERR_NO_MEMORY);
            ck_assert_ptr_null(copy);
            dp_last_error(rt, why, sizeof why);
            ck_assert_msg(strstr(why, "dp_sequence_load: no memory"), "%s", why);
            ck_assert_msg(strstr(why, "memory_limit is"), "%s", why);
            refused++;
        }
        const dp_runtime_info info = info_of(rt);
        ck_assert_uint_le(info.memory_peak_bytes, limit);
        ck_assert_uint_eq(info.memory_bytes, done ? memory_of(copy).reserved_bytes + info.scratch_bytes : 0);
        if (done) ck_assert_uint_lt(info.memory_peak_bytes, whole + whole / 4);
        dp_sequence_free(copy);
        dp_runtime_free(rt);
    }
    ck_assert_int_gt(refused, 10);
    teardown(&f);
}
END_TEST

/* Kernels and numbers of threads do not show in a file. */
START_TEST(other_threads_and_kernels)
{
    fixture f = after_prompt(DP_BF16, 64, 64, 4);
    save(&f, f.s);
    dp_sequence *copy;
    dp_runtime *const rt = runtime_with(5, DP_ISA_AUTO), *const scalar = runtime_with(1, DP_ISA_SCALAR);
    ck_assert_int_eq(dp_sequence_load(rt, f.path, NULL, &copy), DP_OK);
    append_all(&f, copy, PROMPT, PROMPT + 600, 10);
    append_all(&f, f.s, PROMPT, PROMPT + 600, 10);
    check_same(&f, f.s, copy);
    dp_sequence_free(copy);
    ck_assert_int_eq(dp_sequence_load(scalar, f.path, NULL, &copy), DP_OK);
    const char *const again = scratch_path("again");
    ck_assert_int_eq(dp_sequence_save(copy, again, "prompt", 7), DP_OK);
    check_same_files(f.path, again);
    dp_sequence_free(copy);
    dp_runtime_free(rt);
    dp_runtime_free(scalar);
    teardown(&f);
}
END_TEST

/* ---- Saving while others load ---- */

typedef struct traffic {
    const fixture *f;
    dp_sequence *s[2];
    float wanted[2][HEADS * 64];
    int rounds;
} traffic;

static void decode_first(const fixture *f, dp_sequence *s, float *out)
{
    float q[HEADS * 64];
    rng r = {5};
    make_queries(&r, &f->c, 1, HEADS, q);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
}

static void *keep_saving(void *argument)
{
    traffic *const t = argument;
    for (int i = 0; i < t->rounds; i++)
        if (dp_sequence_save(t->s[i % 2], t->f->path, &(char){(char)('0' + i % 2)}, 1)) return argument;
    return NULL;
}

static void *keep_loading(void *argument)
{
    traffic *const t = argument;
    for (int i = 0; i < t->rounds; i++) {
        dp_load_options options;
        dp_load_options_init(&options);
        char note = 0;
        options.map = i % 3 > 0;
        options.note = &note;
        options.note_size = 1;
        dp_sequence *s;
        float out[HEADS * 64];
        if (dp_sequence_load(t->f->rt, t->f->path, &options, &s)) return argument;
        decode_first(t->f, s, out);
        dp_sequence_free(s);
        if ((note != '0' && note != '1') || memcmp(out, t->wanted[note - '0'], sizeof out) != 0) return argument;
    }
    return NULL;
}

START_TEST(saves_among_loads)
{
    enum { SAVERS = 2, LOADERS = 3 };
    fixture f = after_prompt(DP_BF16, 64, 64, 4);
    traffic load = {.f = &f, .rounds = 12}, saves[SAVERS];
    pthread_t threads[SAVERS + LOADERS];
    for (int i = 0; i < SAVERS; i++) {
        saves[i] = load;
        for (int j = 0; j < 2; j++) {
            ck_assert_int_eq(dp_sequence_fork(f.s, &saves[i].s[j]), DP_OK);
            if (j) append_all(&f, saves[i].s[j], PROMPT, PROMPT + 300, 30);
            decode_first(&f, saves[i].s[j], load.wanted[j]);
        }
    }
    ck_assert_int_eq(dp_sequence_save(saves[0].s[0], f.path, "0", 1), DP_OK);
    for (int i = 0; i < SAVERS; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, keep_saving, &saves[i]), 0);
    for (int i = 0; i < LOADERS; i++)
        ck_assert_int_eq(pthread_create(&threads[SAVERS + i], NULL, keep_loading, &load), 0);
    for (int i = 0; i < SAVERS + LOADERS; i++) {
        void *wrong;
        ck_assert_int_eq(pthread_join(threads[i], &wrong), 0);
        ck_assert_ptr_null(wrong);
    }
    for (int i = 0; i < 2 * SAVERS; i++) dp_sequence_free(saves[i / 2].s[i % 2]);
    ck_assert_uint_eq(scratch_count(), 1);
    teardown(&f);
}
END_TEST

START_TEST(config_is_told)
{
    fixture f = setup(DP_F16, 72, 40, 1, 1);
    dp_sequence_config found;
    dp_sequence_config_init(&found);
    ck_assert_int_eq(dp_sequence_get_config(f.s, &found), DP_OK);
    ck_assert_mem_eq(&found, &f.config, sizeof found);
    ck_assert_int_eq(dp_sequence_get_config(NULL, &found), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_get_config(f.s, NULL), DP_ERR_INVALID);
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("snapshot");
    TCase *const tc = tcase_create("snapshot");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, scratch_create, scratch_remove);
    tcase_add_loop_test(tc, grows_to_the_same_bits, 0, 8 * DP_TYPE_COUNT);
    tcase_add_loop_test(tc, any_state, 0, 12);
    tcase_add_loop_test(tc, forks_and_figures, 0, 2);
    tcase_add_loop_test(tc, freed_in_any_order, 0, 6);
    tcase_add_loop_test(tc, limits, 0, 2);
    tcase_add_test(tc, other_threads_and_kernels);
    tcase_add_test(tc, saves_among_loads);
    tcase_add_test(tc, config_is_told);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
