/* Sequences' lives at random, on several threads and two runtimes, for as long as is asked for: created, grown, asked,
 * forked, truncated, handed to another thread, refused for want of memory, freed. Exact answers are compared with dense
 * attention in double precision over what the sequence must hold; between rounds, when all is freed, the process's memory
 * must be what it was.
 *
 *     soak [SECONDS [THREADS [ROUNDS]]]     20, 3 and 20 unless given; DP_TEST_SEED in the environment chooses other lives
 *
 * With fewer than 8 rounds memory is not judged: for tools that keep memory for themselves. */
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "doublep/doublep.h"
#include "reference.h"

enum { POOL = 2048, HEADS = 3, DIM = 64, GROUP = 3, SLOTS = 4, LONGEST = 4000, LAYERS = 2, QUERIES = 4 };
enum { MAX_THREADS = 64, MAX_ROUNDS = 1000 };
static const uint64_t memory_limit = 6 << 20;
static const double bound = 2e-4; /* of an output, values being in (-1, 1) */

/* Tokens that sequences are made of: keys and values of all heads, in numbers that every type holds. */
static float pool_k[POOL][HEADS][DIM], pool_v[POOL][HEADS][DIM];

/* A sequence and what it must hold. */
typedef struct life {
    dp_sequence *s;
    bool limited; /* on the runtime with the limit */
    dp_sequence_config config;
    size_t n[LAYERS];
    uint16_t token[LAYERS][LONGEST];
} life;

static dp_runtime *runtimes[2]; /* the second has a limit */
static atomic_bool stop;
static atomic_int failures;
static atomic_ulong calls, compared, refused;
static struct {
    pthread_mutex_t lock;
    life *life; /* what one thread leaves for another */
} mailbox = {.lock = PTHREAD_MUTEX_INITIALIZER};

typedef struct worker {
    rng r;
    uint64_t seed;
    life *lives[SLOTS];
    float *k, *v; /* of an append */
} worker;

static void fail(const worker *w, const life *l, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fail(const worker *w, const life *l, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("FAILED (thread's seed %llu; %zu and %zu tokens, %u x %u heads, %u + %u dims, type %d): %s\n",
           (unsigned long long)w->seed, l->n[0], l->n[1], l->config.n_kv_heads, l->config.n_query_heads / l->config.n_kv_heads,
           l->config.key_dim, l->config.value_dim, (int)l->config.type, text);
    fflush(stdout);
    failures++;
    stop = true;
}

static size_t below(worker *w, size_t n)
{
    return (size_t)((double)rng_uniform(&w->r) * (double)n);
}

static dp_runtime *runtime_of(const life *l)
{
    return runtimes[l->limited];
}

/* Whether a call was done. One that the limit refused was not, and is no failure. */
static bool done(const worker *w, const life *l, dp_status status)
{
    calls++;
    if (status == DP_ERR_NO_MEMORY && l->limited) {
        refused++;
        return false;
    }
    char text[256];
    if (status) fail(w, l, "%s", dp_last_error(runtime_of(l), text, sizeof text));
    return !status;
}

static life *create(worker *w)
{
    life *const l = calloc(1, sizeof *l);
    l->limited = below(w, 2);
    dp_sequence_config *const c = &l->config;
    dp_sequence_config_init(c);
    c->n_layers = LAYERS;
    c->n_kv_heads = 1 + (uint32_t)below(w, HEADS);
    c->n_query_heads = c->n_kv_heads * (1 + (uint32_t)below(w, GROUP));
    c->key_dim = 8 * (1 + (uint32_t)below(w, DIM / 8));
    c->value_dim = 8 * (1 + (uint32_t)below(w, DIM / 8));
    c->type = (dp_type)below(w, DP_TYPE_COUNT);
    c->segment_tokens = 128u << below(w, 5);
    c->pending_tokens = 64u << below(w, 4);
    c->clustering = (dp_clustering)below(w, 2);
    if (done(w, l, dp_sequence_create(runtime_of(l), c, &l->s))) return l;
    free(l);
    return NULL;
}

static void end(life *l)
{
    if (l) dp_sequence_free(l->s);
    free(l);
}

static void grow(worker *w, life *l, uint32_t layer)
{
    const dp_sequence_config *const c = &l->config;
    size_t n = below(w, 3) ? 1 : 1 + below(w, 700);
    if (n > LONGEST - l->n[layer]) n = LONGEST - l->n[layer];
    if (!n) return;
    for (size_t i = 0; i < n; i++) {
        const size_t token = below(w, POOL);
        l->token[layer][l->n[layer] + i] = (uint16_t)token; /* counts once the append has been done */
        for (size_t h = 0; h < c->n_kv_heads; h++) {
            memcpy(w->k + (i * c->n_kv_heads + h) * c->key_dim, pool_k[token][h], c->key_dim * sizeof(float));
            memcpy(w->v + (i * c->n_kv_heads + h) * c->value_dim, pool_v[token][h], c->value_dim * sizeof(float));
        }
    }
    if (done(w, l, dp_append(l->s, layer, n, w->k, 0, w->v, 0))) l->n[layer] += n;
    if (dp_sequence_tokens(l->s, layer) != l->n[layer])
        fail(w, l, "layer %u has %llu tokens", layer, (unsigned long long)dp_sequence_tokens(l->s, layer));
}

/* What the sequence must hold, as the reference takes it. */
static cache cache_of(const life *l, uint32_t layer)
{
    const dp_sequence_config *const c = &l->config;
    cache all = {l->n[layer], c->n_kv_heads, c->key_dim, c->value_dim, NULL, NULL};
    all.k = malloc((all.n_tokens + 1) * c->n_kv_heads * c->key_dim * sizeof(float));
    all.v = malloc((all.n_tokens + 1) * c->n_kv_heads * c->value_dim * sizeof(float));
    for (size_t i = 0; i < all.n_tokens; i++)
        for (size_t h = 0; h < c->n_kv_heads; h++) {
            memcpy(all.k + (i * c->n_kv_heads + h) * c->key_dim, pool_k[l->token[layer][i]][h], c->key_dim * sizeof(float));
            memcpy(all.v + (i * c->n_kv_heads + h) * c->value_dim, pool_v[l->token[layer][i]][h],
                   c->value_dim * sizeof(float));
        }
    return all;
}

static void compare(const worker *w, const life *l, uint32_t layer, size_t n_queries, const float *q, const float *out,
                    const float *lse)
{
    const size_t heads = l->config.n_query_heads, n_out = n_queries * heads * l->config.value_dim;
    float ref[QUERIES * HEADS * GROUP * DIM], ref_lse[QUERIES * HEADS * GROUP];
    cache all = cache_of(l, layer);
    reference_attention(&all, heads, 1 / sqrtf((float)l->config.key_dim), n_queries, q, ref, ref_lse);
    cache_free(&all);
    for (size_t i = 0; i < n_out; i++)
        if (!(fabs((double)out[i] - ref[i]) <= bound)) {
            fail(w, l, "layer %u: out[%zu] is %.9g, expected %.9g", layer, i, (double)out[i], (double)ref[i]);
            return;
        }
    for (size_t i = 0; i < n_queries * heads; i++)
        if (!(fabs((double)lse[i] - ref_lse[i]) <= bound * 10)) {
            fail(w, l, "layer %u: lse[%zu] is %.9g, expected %.9g", layer, i, (double)lse[i], (double)ref_lse[i]);
            return;
        }
    compared++;
}

/* Several sequences in one call; every other answer is exact and compared, the others must be numbers. */
static void ask(worker *w, bool limited)
{
    enum { MOST = 3, OUT = QUERIES * HEADS * GROUP * DIM };
    float q[MOST][OUT], out[MOST][OUT], lse[MOST][QUERIES * HEADS * GROUP];
    dp_attention_params params[MOST];
    dp_decode_request requests[MOST];
    life *asked[MOST];
    bool exact[MOST];
    size_t n = 0;
    for (size_t i = 0; i < SLOTS && n < MOST; i++) {
        life *const l = w->lives[i];
        const uint32_t layer = (uint32_t)below(w, LAYERS);
        if (!l || l->limited != limited || !l->n[layer] || !below(w, 3)) continue;
        exact[n] = below(w, 2);
        dp_attention_params_init(&params[n]);
        params[n].min_context = 0;
        if (exact[n]) {
            params[n].method = (dp_method)below(w, 2);
            params[n].p1 = params[n].p2 = 1;
            params[n].epsilon = 0;
        }
        dp_decode_request_init(&requests[n]);
        requests[n].sequence = l->s;
        requests[n].layer = layer;
        requests[n].n_queries = 1 + below(w, l->n[layer] < QUERIES ? l->n[layer] : QUERIES);
        for (size_t j = 0; j < OUT; j++) q[n][j] = 1.5f * rng_normal(&w->r);
        requests[n].q = q[n];
        requests[n].out = out[n];
        requests[n].lse = lse[n];
        requests[n].params = &params[n];
        asked[n++] = l;
    }
    if (!n || !done(w, asked[0], dp_decode_batch(runtimes[limited], n, requests))) return;
    for (size_t i = 0; i < n; i++) {
        if (exact[i]) compare(w, asked[i], requests[i].layer, requests[i].n_queries, q[i], out[i], lse[i]);
        for (size_t j = 0; j < requests[i].n_queries * asked[i]->config.n_query_heads * asked[i]->config.value_dim; j++)
            if (!(fabsf(out[i][j]) < 10)) {
                fail(w, asked[i], "a sparse output is %g", (double)out[i][j]);
                return;
            }
    }
}

/* The last tokens once more, as the end of a prompt: those that are in order. */
static void prefill(worker *w, life *l, uint32_t layer)
{
    float q[QUERIES * HEADS * GROUP * DIM], out[QUERIES * HEADS * GROUP * DIM], lse[QUERIES * HEADS * GROUP];
    if (!l->n[layer]) return;
    const size_t n = 1 + below(w, l->n[layer] < QUERIES ? l->n[layer] : QUERIES);
    for (size_t j = 0; j < sizeof q / sizeof *q; j++) q[j] = 1.5f * rng_normal(&w->r);
    if (done(w, l, dp_prefill(l->s, layer, n, q, out, lse))) compare(w, l, layer, n, q, out, lse);
}

static void truncate_to(worker *w, life *l, uint32_t layer)
{
    const size_t n = below(w, 2) ? below(w, l->n[layer] + 1) : l->n[layer] - below(w, l->n[layer] < 5 ? l->n[layer] + 1 : 5);
    if (done(w, l, dp_sequence_truncate(l->s, layer, n))) l->n[layer] = n;
}

static void read_back(worker *w, const life *l, uint32_t layer)
{
    const dp_sequence_config *const c = &l->config;
    if (!l->n[layer]) return;
    const size_t first = below(w, l->n[layer]), n = 1 + below(w, l->n[layer] - first < 700 ? l->n[layer] - first : 700);
    const uint32_t head = (uint32_t)below(w, c->n_kv_heads);
    if (!done(w, l, dp_sequence_read(l->s, layer, head, first, n, w->k, w->v))) return;
    for (size_t i = 0; i < n; i++) {
        const size_t token = l->token[layer][first + i];
        if (memcmp(w->k + i * c->key_dim, pool_k[token][head], c->key_dim * sizeof(float)) ||
            memcmp(w->v + i * c->value_dim, pool_v[token][head], c->value_dim * sizeof(float))) {
            fail(w, l, "token %zu is not what was appended", first + i);
            return;
        }
    }
}

static life *fork_of(worker *w, const life *l)
{
    life *const copy = malloc(sizeof *copy);
    *copy = *l;
    if (done(w, l, dp_sequence_fork(l->s, &copy->s))) return copy;
    free(copy);
    return NULL;
}

static life *exchange(life *mine)
{
    pthread_mutex_lock(&mailbox.lock);
    life *const theirs = mailbox.life;
    mailbox.life = mine;
    pthread_mutex_unlock(&mailbox.lock);
    return theirs;
}

static void live(worker *w)
{
    life **const slot = &w->lives[below(w, SLOTS)];
    life *const l = *slot;
    const uint32_t layer = (uint32_t)below(w, LAYERS);
    if (!l) {
        *slot = create(w);
        return;
    }
    switch (below(w, 17)) {
    case 0: end(l), *slot = NULL; break;
    case 1: truncate_to(w, l, layer); break;
    case 2: (void)done(w, l, dp_build_index(l->s, DP_ALL_LAYERS)); break;
    case 3: read_back(w, l, layer); break;
    case 4: prefill(w, l, layer); break;
    case 5: *slot = exchange(l); break;
    case 6: (void)done(w, l, dp_sequence_set_dense(l->s, layer, (int)below(w, 2))); break;
    case 7: {
        life **const other = &w->lives[below(w, SLOTS)];
        if (other == slot) break;
        end(*other);
        *other = fork_of(w, l);
        break;
    }
    case 16: (void)done(w, l, dp_sequence_reserve(l->s, below(w, 3000))); break;
    case 8: case 9: ask(w, below(w, 2)); break;
    default: grow(w, l, layer);
    }
}

static void *work(void *argument)
{
    worker *const w = argument;
    w->k = malloc(700 * HEADS * DIM * sizeof(float));
    w->v = malloc(700 * HEADS * DIM * sizeof(float));
    while (!stop) live(w);
    for (int i = 0; i < SLOTS; i++) end(w->lives[i]);
    free(w->k), free(w->v);
    return NULL;
}

static dp_runtime *runtime_with(int n_threads, uint64_t limit)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = n_threads;
    config.memory_limit = limit;
    dp_runtime *rt;
    char text[256];
    if (dp_runtime_create(&config, &rt)) {
        printf("FAILED: %s\n", dp_last_error(NULL, text, sizeof text));
        exit(1);
    }
    return rt;
}

/* A whole number of units from -127 to 127, 0 without a sign; one of these two begins a row, so that int8 has the unit as its
 * step. */
static float in_units(float x, float unit, bool first)
{
    return unit * (first ? copysignf(127, x) : fmaxf(-127, fminf(127, rintf(x / unit))) + 0.0f);
}

static void fill_pool(void)
{
    rng r = {41};
    cache c = cache_create(&r, POOL, HEADS, DIM, DIM, DP_BF16);
    for (size_t i = 0; i < POOL * HEADS * DIM; i++) {
        (&pool_k[0][0][0])[i] = in_units(c.k[i], 0x1p-5f, i % DIM == 0);
        (&pool_v[0][0][0])[i] = in_units(c.v[i] / 8, 0x1p-7f, i % DIM == 0);
    }
    cache_free(&c);
}

static double resident_mib(void)
{
    unsigned long pages = 0;
    FILE *const f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%*u %lu", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int n)
{
    double *const sorted = malloc((size_t)n * sizeof *sorted);
    memcpy(sorted, x, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    const double middle = sorted[n / 2];
    free(sorted);
    return middle;
}

/* One round: threads start, live for a while, and leave nothing. */
static void run_round(int number, int n_threads, double seconds, uint64_t seed)
{
    static worker workers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    stop = false;
    runtimes[1] = runtime_with(1 + number % 3, memory_limit);
    for (int i = 0; i < n_threads; i++) {
        const uint64_t own = seed * 1000003 + (uint64_t)number * 1009 + (uint64_t)i;
        workers[i] = (worker){.r = {own * 7919}, .seed = own};
        if (pthread_create(&threads[i], NULL, work, &workers[i])) exit(1);
    }
    for (double left = seconds; left > 0 && !stop; left -= 0.05) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    stop = true;
    for (int i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    end(exchange(NULL));
    for (int i = 0; i < 2; i++) {
        dp_runtime_info info;
        dp_runtime_info_init(&info);
        dp_runtime_get_info(runtimes[i], &info);
        if (info.memory_bytes != info.scratch_bytes || (info.memory_limit && info.memory_peak_bytes > info.memory_limit)) {
            printf("FAILED: runtime %d holds %llu bytes, %llu of them scratch, and held up to %llu of %llu\n", i,
                   (unsigned long long)info.memory_bytes, (unsigned long long)info.scratch_bytes,
                   (unsigned long long)info.memory_peak_bytes, (unsigned long long)info.memory_limit);
            failures++;
        }
    }
    dp_runtime_free(runtimes[1]);
    malloc_trim(0);
}

int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 20;
    const int n_threads = argc > 2 ? atoi(argv[2]) : 3;
    const int rounds = argc > 3 ? atoi(argv[3]) : 20;
    const char *const given = getenv("DP_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 0) : 20602;
    if (!(seconds > 0) || n_threads < 1 || n_threads > MAX_THREADS || rounds < 1 || rounds > MAX_ROUNDS) {
        printf("usage: soak [SECONDS [THREADS [ROUNDS]]]\n");
        return 2;
    }
    mallopt(M_ARENA_MAX, 1); /* else glibc keeps a heap for each thread at a time, and what is measured is how these fill up */
    double resident[MAX_ROUNDS];
    fill_pool();
    runtimes[0] = runtime_with(2, 0);
    printf("DP_TEST_SEED=%llu, %g seconds, %d threads\n", (unsigned long long)seed, seconds, n_threads);
    for (int i = 0; i < rounds && !failures; i++) {
        run_round(i, n_threads, seconds / rounds, seed);
        resident[i] = resident_mib();
        printf("round %2d: %8lu calls, %7lu answers compared, %6lu refused by the limit, %.1f MiB resident\n", i + 1, calls,
               compared, refused, resident[i]);
        fflush(stdout);
    }
    dp_runtime_free(runtimes[0]);
    if (failures) return 1;
    if (!compared) {
        printf("FAILED: nothing compared\n");
        return 1;
    }
    if (rounds < 8) return 0;
    const double early = median(resident + rounds / 4, rounds / 4), late = median(resident + 3 * rounds / 4, rounds / 4);
    printf("resident: %.1f MiB early, %.1f MiB late\n", early, late);
    if (late > 1.05 * early + 4) {
        printf("FAILED: memory grows\n");
        return 1;
    }
    if (!refused) {
        printf("FAILED: nothing was refused\n");
        return 1;
    }
    return 0;
}
