/* Every public function with its n-th allocation, file operation or library call failing, n = 1, 2, 3, ... until it
 * passes untouched; once for that call alone and once for all from there on. After a failure the status and the message
 * say so, the object computes what it did before, the same call succeeds once the fault is gone, with the result that it
 * would have had, and in the end nothing is left behind. */
#include <stdio.h>
#include <string.h>

#include "faults.h"
#include "kv/sequence.h"
#include "scratch.h"
#include "unit.h"

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2, DIM = 16, OUT = HEADS * DIM, TOKENS = 2600, PREFILL = 70 };

typedef struct world {
    const char *path;
    dp_runtime_config config;
    dp_runtime *rt;
    dp_sequence *s, *created;
    bool borrowed; /* s has its rows in `rows` */
    float out[3][PREFILL * OUT];
} world;

static cache c;
static uint16_t rows[2][TOKENS * KV_HEADS * DIM]; /* the same in bf16 */
static float q[PREFILL * OUT];

static dp_status append_all(world *w, size_t first, size_t n)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        if (dp_sequence_tokens(w->s, l) > first) continue; /* done before a fault in a later layer */
        const float *const k = w->borrowed ? NULL : c.k + first * KV_HEADS * DIM;
        const float *const v = w->borrowed ? NULL : c.v + first * KV_HEADS * DIM;
        const dp_status status = dp_append(w->s, l, n, k, 0, v, 0);
        if (status) return status;
    }
    return DP_OK;
}

/* ---- Worlds to start in ---- */

static void no_runtime(world *w)
{
    dp_runtime_config_init(&w->config);
    w->config.n_threads = 2;
}

static void no_sequence(world *w)
{
    no_runtime(w);
    ck_assert_int_eq(dp_runtime_create(&w->config, &w->rt), DP_OK);
}

static void pinned_no_sequence(world *w)
{
    no_runtime(w);
    w->config.pinning = DP_PIN_COMPACT;
    ck_assert_int_eq(dp_runtime_create(&w->config, &w->rt), DP_OK);
}

static void create_sequence(world *w)
{
    dp_sequence_config config = sequence_config(&c, HEADS, DP_BF16);
    config.n_layers = LAYERS;
    config.segment_tokens = 512;
    config.pending_tokens = 128;
    config.borrowed = w->borrowed;
    ck_assert_int_eq(dp_sequence_create(w->rt, &config, &w->s), DP_OK);
}

static void empty_sequence(world *w)
{
    no_sequence(w);
    create_sequence(w);
}

static void prompt(world *w)
{
    empty_sequence(w);
    for (size_t t = 0; t < 2100; t += 300) ck_assert_int_eq(append_all(w, t, 300), DP_OK);
}

/* As while it is read: the index is to be built in the metric of its queries. */
static void observed(world *w)
{
    prompt(w);
    for (uint32_t l = 0; l < LAYERS; l++) ck_assert_int_eq(dp_observe_queries(w->s, l, PREFILL, q), DP_OK);
}

static void indexed(world *w)
{
    prompt(w);
    ck_assert_int_eq(dp_build_index(w->s, DP_ALL_LAYERS), DP_OK);
}

static void pinned(world *w)
{
    pinned_no_sequence(w);
    create_sequence(w);
    ck_assert_int_eq(append_all(w, 0, 2100), DP_OK);
}

static void borrowed(world *w)
{
    no_sequence(w);
    w->borrowed = true;
    create_sequence(w);
    dp_borrowed_rows r;
    dp_borrowed_rows_init(&r);
    r.k = rows[0], r.v = rows[1], r.n_tokens = TOKENS;
    for (size_t i = 0; i < TOKENS * KV_HEADS * DIM; i++) { /* the cache's numbers are bf16's */
        uint32_t k, v;
        memcpy(&k, &c.k[i], sizeof k), memcpy(&v, &c.v[i], sizeof v);
        rows[0][i] = (uint16_t)(k >> 16), rows[1][i] = (uint16_t)(v >> 16);
    }
    for (uint32_t l = 0; l < LAYERS; l++) ck_assert_int_eq(dp_borrow(w->s, l, &r), DP_OK);
}

/* Some segments are stale, and some tokens wait. */
static void changed(world *w)
{
    borrowed(w);
    for (size_t t = 0; t < 2100; t += 300) ck_assert_int_eq(append_all(w, t, 300), DP_OK);
    ck_assert_int_eq(dp_rows_changed(w->s, DP_ALL_LAYERS, 600, 1200), DP_OK);
}

static void about_to_cluster(world *w)
{
    indexed(w);
    for (size_t t = 2100; t < 2140; t++) ck_assert_int_eq(append_all(w, t, 1), DP_OK);
}

/* The index of one layer, and sums over queries of the other. */
static void saved(world *w)
{
    empty_sequence(w);
    ck_assert_int_eq(append_all(w, 0, 400), DP_OK);
    ck_assert_int_eq(dp_build_index(w->s, 0), DP_OK);
    ck_assert_int_eq(dp_observe_queries(w->s, 1, 1, q), DP_OK);
    ck_assert_int_eq(dp_sequence_save(w->s, w->path, "old", 3), DP_OK);
}

/* ---- Calls that are to fail ---- */

static dp_status create_runtime(world *w)
{
    return dp_runtime_create(&w->config, &w->rt);
}

static dp_status create_another(world *w)
{
    dp_sequence_config config = sequence_config(&c, HEADS, DP_F32);
    config.n_layers = 3;
    return dp_sequence_create(w->rt, &config, &w->created);
}

static dp_status first_tokens(world *w)
{
    return append_all(w, 0, 300);
}

static dp_status more_prompt(world *w)
{
    return append_all(w, 2100, 400);
}

static dp_status decode_tokens(world *w)
{
    const uint64_t have = dp_sequence_tokens(w->s, LAYERS - 1);
    for (size_t t = have; t < 2400; t++) {
        const dp_status status = append_all(w, t, 1);
        if (status) return status;
    }
    return DP_OK;
}

static dp_status build(world *w)
{
    return dp_build_index(w->s, DP_ALL_LAYERS);
}

static dp_status observe(world *w)
{
    return dp_observe_queries(w->s, 1, PREFILL, q);
}

static dp_status reserve(world *w)
{
    return dp_sequence_reserve(w->s, 250000); /* more than what is mapped */
}

static dp_status truncate_clusters(world *w)
{
    return dp_sequence_truncate(w->s, DP_ALL_LAYERS, 1500);
}

static dp_status fork_it(world *w)
{
    return dp_sequence_fork(w->s, &w->created);
}

static dp_status prefill(world *w)
{
    return dp_prefill(w->s, 0, PREFILL, q, w->out[0], NULL);
}

static dp_status decode(world *w)
{
    return dp_decode(w->s, 1, 60, q, NULL, w->out[0], NULL, NULL);
}

static dp_status decode_batch(world *w)
{
    dp_decode_request requests[3];
    for (uint32_t i = 0; i < 3; i++) {
        dp_decode_request_init(&requests[i]);
        requests[i].sequence = w->s;
        requests[i].layer = i % LAYERS;
        requests[i].n_queries = 10 + 20 * i;
        requests[i].q = q;
        requests[i].out = w->out[i];
    }
    return dp_decode_batch(w->rt, 3, requests);
}

static dp_status save(world *w)
{
    return dp_sequence_save(w->s, w->path, "new", 3);
}

static dp_status load(world *w)
{
    return dp_sequence_load(w->rt, w->path, NULL, &w->created);
}

static dp_status load_copied(world *w)
{
    dp_load_options options;
    dp_load_options_init(&options);
    options.map = 0;
    return dp_sequence_load(w->rt, w->path, &options, &w->created);
}

static const struct scenario {
    const char *function;
    void (*begin)(world *w);
    dp_status (*call)(world *w);
    bool in_parts; /* calls a function several times: what was done before the fault stays */
} scenarios[] = {
    {"dp_runtime_create", no_runtime, create_runtime, false},
    {"dp_sequence_create", no_sequence, create_another, false},
    {"dp_append", empty_sequence, first_tokens, true},
    {"dp_append", indexed, more_prompt, true},
    {"dp_append", about_to_cluster, decode_tokens, true},
    {"dp_build_index", prompt, build, false},
    {"dp_build_index", pinned, build, false},
    {"dp_build_index", observed, build, false},
    {"dp_observe_queries", prompt, observe, false},
    {"dp_prefill", observed, prefill, false},
    {"dp_sequence_reserve", indexed, reserve, false},
    {"dp_sequence_truncate", indexed, truncate_clusters, false},
    {"dp_sequence_fork", indexed, fork_it, false},
    {"dp_sequence_fork", prompt, fork_it, false},
    {"dp_sequence_save", saved, save, false},
    {"dp_sequence_load", saved, load, false},
    {"dp_sequence_load", saved, load_copied, false},
    {"dp_prefill", prompt, prefill, false},
    {"dp_prefill", pinned, prefill, false},
    {"dp_decode", indexed, decode, false},
    {"dp_decode_batch", indexed, decode_batch, false},
    {"dp_append", changed, more_prompt, true},
    {"dp_append", changed, decode_tokens, true},
    {"dp_build_index", changed, build, false},
    {"dp_sequence_fork", changed, fork_it, false},
    {"dp_prefill", changed, prefill, false},
};
enum { N_SCENARIOS = sizeof scenarios / sizeof *scenarios };

/* ---- What there is to see of a world ---- */

typedef struct view {
    uint64_t tokens[LAYERS], clusters, clustered;
    uint64_t reserved; /* bytes; a call that fails may leave a larger buffer, but in the end nothing is in excess */
    float decoded[2][LAYERS][2][OUT]; /* of the sequence and the one that was created from it: sparse, dense */
    float out[3][PREFILL * OUT];
    uint32_t file, sums; /* FNV-1a of its bytes; of what is summed up of queries */
} view;

static void look_at(dp_sequence *s, float decoded[LAYERS][2][OUT])
{
    for (uint32_t l = 0; l < LAYERS; l++)
        for (int dense = 0; dense < 2 && dp_sequence_tokens(s, l); dense++) {
            dp_attention_params params;
            dp_attention_params_init(&params);
            params.min_context = dense ? UINT32_MAX : 0;
            ck_assert_int_eq(dp_decode(s, l, 1, q, &params, decoded[l][dense], NULL, NULL), DP_OK);
        }
}

static uint32_t hash_byte(uint32_t hash, int byte)
{
    return (hash ^ (uint32_t)byte) * 16777619u;
}

static uint32_t hash_of(const char *path)
{
    uint32_t hash = 2166136261u;
    FILE *const file = fopen(path, "rb");
    for (int byte; file && (byte = fgetc(file)) != EOF;) hash = hash_byte(hash, byte);
    if (file) fclose(file);
    return hash;
}

static uint32_t hash_of_sums(const dp_sequence *s)
{
    uint32_t hash = 2166136261u;
    for (uint32_t h = 0; h < LAYERS * KV_HEADS; h++) {
        const dp_queries *const queries = &s->heads[h].queries;
        const unsigned char *const bytes = (const unsigned char *)queries->vector;
        hash = hash_byte(hash_byte(hash, (int)queries->n), queries->settled);
        for (size_t i = 0; i < dp_queries_bytes(queries, DIM); i++) hash = hash_byte(hash, bytes[i]);
    }
    return hash;
}

static void look(const world *w, view *v)
{
    memset(v, 0, sizeof *v);
    v->file = hash_of(w->path);
    memcpy(v->out, w->out, sizeof v->out);
    if (!w->s) return;
    dp_memory m;
    dp_memory_init(&m);
    ck_assert_int_eq(dp_sequence_memory(w->s, &m), DP_OK);
    v->clusters = m.clusters;
    v->clustered = m.clustered_tokens;
    v->reserved = m.reserved_bytes;
    v->sums = hash_of_sums(w->s);
    for (uint32_t l = 0; l < LAYERS; l++) v->tokens[l] = dp_sequence_tokens(w->s, l);
    look_at(w->s, v->decoded[0]);
    if (w->created) look_at(w->created, v->decoded[1]);
}

static void end(world *w)
{
    dp_sequence_free(w->s);
    dp_sequence_free(w->created);
    dp_runtime_free(w->rt);
}

/* One round; returns whether there was a fault. */
static bool round_with(const struct scenario *sc, const char *path, long n, bool for_good, const view *wanted)
{
    static world w;
    static view before, now;
    memset(&w, 0, sizeof w);
    w.path = path;
    const faults_held held = faults_held_now();
    sc->begin(&w);
    look(&w, &before);
    faults_arm(n, for_good);
    const dp_status status = sc->call(&w);
    const bool fault = faults_disarm() > 0;
    if (status) {
        char text[256];
        ck_assert_msg(fault, "%s failed of itself", sc->function);
        ck_assert(status == DP_ERR_NO_MEMORY || status == DP_ERR_SYSTEM);
        dp_last_error(w.rt, text, sizeof text);
        ck_assert_msg(strncmp(text, sc->function, strlen(sc->function)) == 0, "%s: fault %ld: message \"%s\"",
                      sc->function, n, text);
        look(&w, &now);
        ck_assert_ptr_null(w.created);
        before.reserved = now.reserved;
        ck_assert_uint_le(scratch_count(), 1); /* nothing half written */
        if (now.file == wanted->file) before.file = now.file; /* complete; only the folder's fsync failed */
        if (!sc->in_parts)
            ck_assert_msg(memcmp(&now, &before, sizeof now) == 0, "%s: fault %ld left traces", sc->function, n);
        ck_assert_int_eq(sc->call(&w), DP_OK);
    }
    look(&w, &now);
    if (fault && !status) now.reserved = wanted->reserved; /* nothing but giving memory back may fail unnoticed */
    ck_assert_msg(memcmp(&now, wanted, sizeof now) == 0, "%s: another result after fault %ld", sc->function, n);
    end(&w);
    const faults_held left = faults_held_now();
    ck_assert_msg(memcmp(&left, &held, sizeof left) == 0,
                  "%s: fault %ld: left are %ld blocks, %ld mapped bytes, %ld files, %ld descriptors, %ld topologies, %ld bitmaps",
                  sc->function, n, left.blocks - held.blocks, left.mapped_bytes - held.mapped_bytes,
                  left.files - held.files, left.descriptors - held.descriptors, left.topologies - held.topologies,
                  left.bitmaps - held.bitmaps);
    return fault;
}

START_TEST(nth_call_fails)
{
    const struct scenario *const sc = &scenarios[_i / 2];
    const bool for_good = _i % 2;
    rng r = {67};
    c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    make_queries(&r, &c, PREFILL, HEADS, q);
    static world w;
    static view wanted;
    w.path = scratch_path("snapshot");
    sc->begin(&w);
    ck_assert_int_eq(sc->call(&w), DP_OK);
    look(&w, &wanted);
    end(&w);
    long n = 1;
    while (round_with(sc, w.path, n, for_good, &wanted)) n++;
    ck_assert_int_gt(n, 1);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("faults");
    TCase *const tc = tcase_create("faults");
    tcase_set_timeout(tc, 240);
    tcase_add_checked_fixture(tc, scratch_create, scratch_remove);
    tcase_add_loop_test(tc, nth_call_fails, 0, 2 * N_SCENARIOS);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
