/* Sequences of calls with arguments drawn from the input, right and wrong. What is right succeeds (or says that the memory
 * limit is in the way) and gives what it must: figures that agree with a plain model of the calls, dense attention where
 * nothing is left approximate, the same bits from forks and from what was saved and loaded. What is wrong is refused and
 * changes nothing. In the end no memory is held. */
#include <math.h>
#include <stdbool.h>

#include "fuzz.h"
#include "saved.h"

enum { SEQUENCES = 4, LAYERS = 2, MOST_TOKENS = 1500, MOST_CHUNK = 300, MOST_HEADS = 4, MOST_DIM = 24 };
enum { QUERIES = DP_MAX_DECODE_QUERIES, MOST_OUT = QUERIES * MOST_HEADS * MOST_DIM };

static dp_runtime *free_rt, *limited_rt;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    free_rt = small_runtime(0);
    limited_rt = small_runtime(1 << 20);
    return saved_open();
}

/* What a sequence should know. */
typedef struct sequence {
    dp_sequence *s; /* NULL: none in this place */
    uint64_t n[LAYERS], queryable[LAYERS];
} sequence;

typedef struct world {
    input in;
    dp_runtime *rt;
    dp_sequence_config config;
    sequence all[SEQUENCES];
    float k[MOST_CHUNK * MOST_HEADS * MOST_DIM], v[MOST_CHUNK * MOST_HEADS * MOST_DIM];
    float q[MOST_CHUNK * MOST_HEADS * MOST_DIM], out[4][MOST_CHUNK * MOST_HEADS * MOST_DIM];
} world;

/* Rows near a few directions; now and then one far out. */
static void draw(world *w, float *rows, size_t n)
{
    uint32_t state = (uint32_t)input_byte(&w->in) * 2654435761u + 1;
    const float size = (float)(1 << input_below(&w->in, 4));
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        rows[i] = ((float)(state >> 8) / (float)(1 << 24) - 0.5f) * (state >> 24 == 7 ? 4 * size : size);
    }
}

static bool ok(const world *w, dp_status status)
{
    MUST(status == DP_OK || (status == DP_ERR_NO_MEMORY && w->rt == limited_rt));
    return status == DP_OK;
}

static void check(const world *w, const sequence *x)
{
    (void)w;
    for (uint32_t l = 0; l < LAYERS; l++) MUST(dp_sequence_tokens(x->s, l) == (l < w->config.n_layers ? x->n[l] : 0));
}

static void create(world *w, sequence *x)
{
    if (x->s) return;
    *x = (sequence){0};
    if (ok(w, dp_sequence_create(w->rt, &w->config, &x->s))) check(w, x);
}

static void append(world *w, sequence *x, uint32_t layer)
{
    size_t n = 1 + input_below(&w->in, 4);
    if (n > 3) n = 1 + input_below(&w->in, MOST_CHUNK);
    if (x->n[layer] + n > MOST_TOKENS) return;
    draw(w, w->k, n * w->config.n_kv_heads * w->config.key_dim);
    draw(w, w->v, n * w->config.n_kv_heads * w->config.value_dim);
    if (ok(w, dp_append(x->s, layer, n, w->k, 0, w->v, 0))) x->n[layer] += n, x->queryable[layer] = n;
}

static size_t out_floats(const world *w, size_t n_queries)
{
    return n_queries * w->config.n_query_heads * w->config.value_dim;
}

static void draw_queries(world *w, size_t n)
{
    draw(w, w->q, n * w->config.n_query_heads * w->config.key_dim);
}

static void compare(const world *w, const float *a, const float *b, size_t n)
{
    float largest = 1;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(b[i]));
    for (size_t i = 0; i < n; i++) MUST(fabsf(a[i] - b[i]) <= 2e-3f * largest);
    (void)w;
}

/* Dense, refined down to the last token by either rule, and at the default. */
static void decode(world *w, sequence *x, uint32_t layer)
{
    size_t n = 1 + input_below(&w->in, QUERIES);
    if (n > x->queryable[layer]) n = x->queryable[layer];
    if (!n) return;
    draw_queries(w, n);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.method = DP_DENSE;
    if (!ok(w, dp_decode(x->s, layer, n, w->q, &params, w->out[0], NULL, NULL))) return;
    params.method = DP_DOUBLE_P;
    params.min_context = 0;
    params.p1 = params.p2 = 1;
    params.epsilon = 0;
    params.refine = input_byte(&w->in) % 2 ? DP_REFINE_TOP_P : DP_REFINE_BUDGET;
    params.slope = input_byte(&w->in) % 2;
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    if (!ok(w, dp_decode(x->s, layer, n, w->q, &params, w->out[1], NULL, &stats))) return;
    MUST(stats.tokens == x->n[layer] && stats.bytes_dense);
    compare(w, w->out[1], w->out[0], out_floats(w, n));
    params.p1 = (float)input_byte(&w->in) / 255;
    params.p2 = params.p1 * (float)input_byte(&w->in) / 255;
    params.epsilon = (float)input_byte(&w->in) / 255;
    params.window = input_byte(&w->in);
    params.sink = input_byte(&w->in);
    params.min_clusters = input_byte(&w->in) % 8;
    params.keep_dropped = input_byte(&w->in) % 2;
    params.dispersion = input_byte(&w->in) % 2;
    params.exact_mass = input_byte(&w->in) % 2;
    if (!ok(w, dp_decode(x->s, layer, n, w->q, &params, w->out[1], NULL, &stats))) return;
    for (size_t i = 0; i < out_floats(w, n); i++) MUST(isfinite(w->out[1][i]));
    MUST(stats.bytes == stats.bytes_centroids + stats.bytes_means + stats.bytes_rows + stats.bytes_codes);
}

static void prefill(world *w, sequence *x, uint32_t layer)
{
    size_t n = 1 + input_below(&w->in, MOST_CHUNK);
    if (n > x->queryable[layer]) n = x->queryable[layer];
    if (!n) return;
    draw_queries(w, n);
    if (!ok(w, dp_prefill(x->s, layer, n, w->q, w->out[0], NULL))) return;
    if (n > QUERIES) return;
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.method = DP_DENSE;
    if (ok(w, dp_decode(x->s, layer, n, w->q, &params, w->out[1], NULL, NULL)))
        compare(w, w->out[1], w->out[0], out_floats(w, n));
}

static void same_bits(world *w, sequence *a, sequence *b)
{
    draw_queries(w, 1);
    for (uint32_t l = 0; l < w->config.n_layers; l++)
        if (a->queryable[l] && ok(w, dp_decode(a->s, l, 1, w->q, NULL, w->out[0], NULL, NULL)) &&
            ok(w, dp_decode(b->s, l, 1, w->q, NULL, w->out[1], NULL, NULL)))
            MUST(memcmp(w->out[0], w->out[1], out_floats(w, 1) * sizeof(float)) == 0);
}

static void fork_one(world *w, sequence *x, sequence *to)
{
    if (to->s) return;
    *to = *x;
    if (ok(w, dp_sequence_fork(x->s, &to->s))) same_bits(w, x, to);
}

static void save_and_load(world *w, sequence *x, sequence *to)
{
    if (!ok(w, dp_sequence_save(x->s, saved_path, w, 5)) || to->s) return;
    dp_load_options options;
    dp_load_options_init(&options);
    size_t note_bytes = 0;
    options.map = input_byte(&w->in) % 2;
    options.verify = input_byte(&w->in) % 2;
    options.config = &w->config;
    options.note_bytes = &note_bytes;
    *to = *x;
    if (!ok(w, dp_sequence_load(w->rt, saved_path, &options, &to->s))) return;
    MUST(note_bytes == 5);
    same_bits(w, x, to);
}

static void truncate_one(world *w, sequence *x, uint32_t layer)
{
    const uint64_t n = x->n[layer] ? input_below(&w->in, (uint32_t)x->n[layer] + 1) : 0;
    if (!ok(w, dp_sequence_truncate(x->s, layer, n))) return;
    const uint64_t gone = x->n[layer] - n, window = w->config.window;
    x->n[layer] = n;
    /* What is left of the latest append, or at least the window. */
    x->queryable[layer] = x->queryable[layer] > gone ? x->queryable[layer] - gone : n < window ? n : window;
}

static void build(world *w, sequence *x, uint32_t layer)
{
    if (!ok(w, dp_build_index(x->s, layer))) return;
    if (x->queryable[layer] > w->config.window) x->queryable[layer] = w->config.window;
}

static void read_back(world *w, sequence *x, uint32_t layer)
{
    const uint64_t first = x->n[layer] ? input_below(&w->in, (uint32_t)x->n[layer]) : 0;
    const size_t n = (size_t)(x->n[layer] - first < MOST_CHUNK ? x->n[layer] - first : MOST_CHUNK);
    MUST(dp_sequence_read(x->s, layer, input_below(&w->in, w->config.n_kv_heads), first, n, w->out[0], w->out[1]) == DP_OK);
    dp_memory m;
    dp_memory_init(&m);
    MUST(dp_sequence_memory(x->s, &m) == DP_OK && m.shared_bytes <= m.reserved_bytes);
}

static void batch(world *w, uint32_t layer)
{
    dp_decode_request requests[SEQUENCES];
    size_t n = 0;
    draw_queries(w, 1);
    for (int i = 0; i < SEQUENCES; i++) {
        if (!w->all[i].s || !w->all[i].queryable[layer]) continue;
        dp_decode_request_init(&requests[n]);
        requests[n].sequence = w->all[i].s;
        requests[n].layer = layer;
        requests[n].q = w->q;
        requests[n].out = w->out[0] + n * out_floats(w, 1);
        n++;
    }
    if (!ok(w, dp_decode_batch(w->rt, n, requests))) return;
    for (size_t i = 0; i < n; i++)
        if (ok(w, dp_decode(requests[i].sequence, layer, 1, w->q, NULL, w->out[1], NULL, NULL)))
            MUST(memcmp(w->out[1], requests[i].out, out_floats(w, 1) * sizeof(float)) == 0);
}

/* One argument that is wrong. */
static dp_status wrong_call(world *w, sequence *x, uint32_t layer)
{
    dp_attention_params params;
    dp_attention_params_init(&params);
    dp_sequence *none = NULL;
    dp_sequence_config config = w->config;
    dp_load_options options;
    dp_load_options_init(&options);
    const uint32_t beyond = w->config.n_layers + input_below(&w->in, 3);
    switch (input_below(&w->in, 24)) {
    case 0: return dp_append(x->s, beyond, 1, w->k, 0, w->v, 0);
    case 1: return dp_append(x->s, layer, 0, w->k, 0, w->v, 0);
    case 2: return dp_append(x->s, layer, 1, w->k, 1, w->v, 0);
    case 3: return dp_append(x->s, layer, SIZE_MAX / 2, w->k, 0, w->v, 0);
    case 4: return dp_append(NULL, layer, 1, w->k, 0, w->v, 0);
    case 5: return dp_append(x->s, layer, 1, NULL, 0, w->v, 0);
    case 6: return dp_decode(x->s, beyond, 1, w->q, NULL, w->out[0], NULL, NULL);
    case 7: return dp_decode(x->s, layer, 0, w->q, NULL, w->out[0], NULL, NULL);
    case 8: return dp_decode(x->s, layer, QUERIES + 1, w->q, NULL, w->out[0], NULL, NULL);
    case 9: return dp_decode(x->s, layer, 1, NULL, NULL, w->out[0], NULL, NULL);
    case 10: return params.epsilon = -1, dp_decode(x->s, layer, 1, w->q, &params, w->out[0], NULL, NULL);
    case 11: return params.p1 = NAN, dp_decode(x->s, layer, 1, w->q, &params, w->out[0], NULL, NULL);
    case 12: return params.struct_size = 1000, dp_decode(x->s, layer, 1, w->q, &params, w->out[0], NULL, NULL);
    case 13: return dp_prefill(x->s, layer, x->n[layer] + 1, w->q, w->out[0], NULL);
    case 14: return dp_sequence_truncate(x->s, layer, x->n[layer] + 1 + input_byte(&w->in));
    case 15: return dp_sequence_truncate(x->s, beyond, 0);
    case 16: return dp_build_index(x->s, beyond);
    case 17: return dp_sequence_read(x->s, layer, w->config.n_kv_heads, 0, 0, w->out[0], NULL);
    case 18: return dp_sequence_read(x->s, layer, 0, x->n[layer], 1, w->out[0], NULL);
    case 19: return dp_observe_queries(x->s, layer, 0, w->q);
    case 20: return dp_sequence_save(x->s, "", NULL, 0);
    case 21: return ((uint32_t *)&config)[1 + input_below(&w->in, sizeof config / 4 - 1)] = UINT32_MAX,
                    dp_sequence_create(w->rt, &config, &none);
    case 22: return options.note_size = 1, dp_sequence_load(w->rt, saved_path, &options, &none);
    default: return dp_sequence_set_dense(x->s, beyond, 1);
    }
}

/* Any settings in any range: refused, or a sequence. */
static void random_config(world *w)
{
    dp_sequence_config config = w->config;
    for (int i = input_below(&w->in, 4); i >= 0; i--) {
        uint32_t word = 0;
        for (int j = 0; j < 4; j++) word = word << 8 | input_byte(&w->in);
        ((uint32_t *)&config)[input_below(&w->in, sizeof config / 4)] = word >> input_below(&w->in, 32);
    }
    if ((uint64_t)config.n_layers * config.n_kv_heads > 10000) return; /* right, and slow */
    dp_sequence *s = NULL;
    const dp_status status = dp_sequence_create(limited_rt, &config, &s);
    MUST(!s == (status != DP_OK));
    dp_sequence_free(s);
}

static void step(world *w)
{
    const uint8_t what = input_byte(&w->in) % 16, where = input_byte(&w->in);
    sequence *const x = &w->all[where % SEQUENCES], *const other = &w->all[where / SEQUENCES % SEQUENCES];
    const uint32_t layer = where >> 6 & 1 && w->config.n_layers > 1;
    if (!x->s) create(w, x);
    if (!x->s) return;
    switch (what) {
    case 0: dp_sequence_free(x->s), x->s = NULL; return;
    case 1: case 2: case 3: append(w, x, layer); break;
    case 4: case 5: decode(w, x, layer); break;
    case 6: prefill(w, x, layer); break;
    case 7: build(w, x, layer); break;
    case 8: truncate_one(w, x, layer); break;
    case 9: fork_one(w, x, other); break;
    case 10: save_and_load(w, x, other); break;
    case 11: draw_queries(w, 3), (void)ok(w, dp_observe_queries(x->s, layer, 3, w->q)); break;
    case 12: MUST(dp_sequence_set_dense(x->s, layer, input_byte(&w->in) % 2) == DP_OK); break;
    case 13: read_back(w, x, layer), batch(w, layer); break;
    case 14: MUST(wrong_call(w, x, layer) == DP_ERR_INVALID); break;
    default: random_config(w); break;
    }
    check(w, x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static world w;
    w.in = (input){data, size};
    w.rt = input_byte(&w.in) % 4 ? free_rt : limited_rt;
    dp_sequence_config *const c = &w.config;
    dp_sequence_config_init(c);
    c->n_layers = 1 + input_below(&w.in, LAYERS);
    c->n_kv_heads = 1 + input_below(&w.in, 2);
    c->n_query_heads = c->n_kv_heads * (1 + input_below(&w.in, 2));
    c->key_dim = 8 * (1 + input_below(&w.in, 3));
    c->value_dim = 8 * (1 + input_below(&w.in, 3));
    c->type = (dp_type)input_below(&w.in, DP_TYPE_COUNT);
    c->sink = input_below(&w.in, 40);
    c->window = input_below(&w.in, 100);
    c->tokens_per_cluster = 4 + input_below(&w.in, 20);
    c->segment_tokens = 64 + input_below(&w.in, 256);
    c->pending_tokens = 64 + input_below(&w.in, 256);
    c->iterations = 1 + input_below(&w.in, 4);
    c->outlier_share = (float)input_below(&w.in, 6) / 10;
    c->clustering = (dp_clustering)input_below(&w.in, 2);
    c->key_codes = input_below(&w.in, 2);
    c->query_metric = (float)input_below(&w.in, 10) / 10;
    c->query_origin = (float)input_below(&w.in, 11) / 10;
    const unsigned growth = input_below(&w.in, 55);
    c->cluster_growth = (float)(growth % 11) / 10;
    c->softcap = (float)(growth / 11);
    const uint64_t before = runtime_bytes(w.rt);
    while (w.in.size) step(&w);
    for (int i = 0; i < SEQUENCES; i++) dp_sequence_free(w.all[i].s), w.all[i].s = NULL;
    MUST(runtime_bytes(w.rt) == before);
    return 0;
}
