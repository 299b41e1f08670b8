/* The plugin in llama.cpp, through llama.cpp's own API: whatever is done to the cache, the logits are those of the CPU
 * backend. Every test runs its steps three times in one process: in f32 without flash attention, by the CPU backend's
 * flash attention, which adds values up in f16, and with the plugin loaded. Attention through the plugin is dense here
 * (DOUBLEP_EPSILON=0) and may be no further from f32 than the CPU backend's, nor from the CPU backend's than that is from
 * f32. The model's weights are expanded to f32:
 * llama.cpp rounds activations to 8 bits where the weights have 8 bits, which would hide more than it shows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../suite.h"
#include "../threads.h"
#include "ggml-backend.h"
#include "llamacpp/plugin.h"
#include "scenarios.h"

enum { THREADS = 2 };

/* How much further than the CPU backend's from f32 the plugin's logits may be: most of the difference is common to both,
 * that of the prompt; with copies that are rounded once more. A token that is stale or missing shows as ten times that and
 * more. */
static const double usual = 1.15, rounded = 1.5;

static char model_path[] = "/tmp/doublep-plugin-XXXXXX";

static void quiet(enum ggml_log_level level, const char *text, void *data)
{
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

/* ---- Running it ---- */

static void play(run *r, void (*scenario)(run *))
{
    r->ctx = llama_init_from_model(r->model, r->params);
    ck_assert_ptr_nonnull(r->ctx);
    r->n = 0;
    scenario(r);
    llama_free(r->ctx);
}

static const plugin_counters *load_plugin(void)
{
    const ggml_backend_reg_t reg = ggml_backend_load(PLUGIN_PATH);
    ck_assert_ptr_nonnull(reg);
    const plugin_counters *(*counters)(void);
    *(void **)&counters = ggml_backend_reg_get_proc_address(reg, "doublep_counters");
    return counters();
}

/* Root mean square difference of the logits of an output. */
static double distance(const run *r, int output, const float *a, const float *b)
{
    double sum = 0;
    for (int j = output * r->n_vocab; j < (output + 1) * r->n_vocab; j++) {
        const double d = (double)a[j] - (double)b[j];
        sum += d * d;
    }
    return sqrt(sum / r->n_vocab);
}

/* The largest difference of two logits of the same place. */
static double largest_difference(const run *r, const float *a, const float *b)
{
    double largest = 0;
    for (int j = 0; j < r->n * r->n_vocab; j++) {
        const double d = fabs((double)a[j] - (double)b[j]);
        if (!(d <= largest)) largest = d;
    }
    return largest;
}

static run open_model(const char *epsilon)
{
    setenv("DOUBLEP_EPSILON", epsilon, 1);
    setenv("DOUBLEP_MIN_CONTEXT", "256", 1);
    llama_log_set(quiet, NULL);
    run r = {.params = llama_context_default_params()};
    r.model = llama_model_load_from_file(model_path, llama_model_default_params());
    ck_assert_ptr_nonnull(r.model);
    r.n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(r.model));
    r.params.n_ctx = CONTEXT;
    r.params.n_batch = CONTEXT;
    r.params.n_ubatch = 256;
    r.params.n_seq_max = SLOTS;
    r.params.kv_unified = true;
    r.params.n_threads = r.params.n_threads_batch = THREADS;
    return r;
}

/* n_copied tokens of each layer are copied and indexed; 0: it does not matter how many. */
static void compare(void (*scenario)(run *), void (*change)(struct llama_context_params *), uint64_t n_copied, double allowance)
{
    run r = open_model("0");
    if (change) change(&r.params);
    const size_t floats = (size_t)MAX_LOGITS * (size_t)r.n_vocab;
    float *const exact = r.logits = malloc(floats * sizeof *exact);
    const struct llama_context_params params = r.params;
    r.params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    r.params.type_k = r.params.type_v = GGML_TYPE_F32;
    play(&r, scenario);
    const int n = r.n;
    r.params = params;
    float *const by_cpu = r.logits = malloc(floats * sizeof *by_cpu);
    play(&r, scenario);
    ck_assert_int_eq(r.n, n);
    const plugin_counters *const counters = load_plugin();
    float *const by_plugin = r.logits = malloc(floats * sizeof *by_plugin);
    play(&r, scenario);
    ck_assert_int_eq(r.n, n);

    double cpu_error = 0, worst = 0;
    for (int i = 0; i < n; i++) cpu_error += distance(&r, i, by_cpu, exact) / n;
    for (int i = 0; i < n; i++) {
        const double error = distance(&r, i, by_plugin, exact), own = distance(&r, i, by_cpu, exact);
        const double ratio = error / (own > cpu_error ? own : cpu_error);
        if (!(ratio <= allowance))
            fprintf(stderr, "output %d of %d: %.2g from f32, the CPU backend %.2g\n", i, n, error, own);
        if (!(ratio <= worst)) worst = ratio;
    }
    const double difference = largest_difference(&r, by_plugin, by_cpu), own = largest_difference(&r, by_cpu, exact);
    printf("%d outputs, mean distance of the CPU backend %.2g, worst ratio %.2f; largest difference of plugin and CPU "
           "backend %.2g, of the CPU backend and f32 %.2g; nodes: %llu by the library, %llu passed\n",
           n, cpu_error, worst, difference, own, (unsigned long long)(counters->dense + counters->sparse),
           (unsigned long long)counters->passed);
    fflush(stdout);
    ck_assert(worst <= allowance);
    ck_assert(difference <= allowance * own);
    ck_assert_uint_gt(counters->dense, 0); /* the plugin did take part */
    ck_assert_uint_eq(counters->sparse, 0);
    ck_assert_uint_eq(counters->refused, 0);
    if (n_copied) ck_assert_uint_eq(counters->tokens_copied, n_copied * (uint64_t)llama_model_n_layer(r.model));
    llama_model_free(r.model);
    free(exact);
    free(by_cpu);
    free(by_plugin);
}

static void separate_streams(struct llama_context_params *params)
{
    params->kv_unified = false;
}

static void bf16_cache(struct llama_context_params *params)
{
    params->type_k = params->type_v = GGML_TYPE_BF16;
}

static void little_memory(struct llama_context_params *params)
{
    (void)params;
    setenv("DOUBLEP_MEMORY", "6M", 1);
}

static void twenty_slots(struct llama_context_params *params)
{
    params->n_seq_max = 20;
}

static void q8_0_cache(struct llama_context_params *params)
{
    params->type_k = params->type_v = GGML_TYPE_Q8_0;
}

static void int8_copies(struct llama_context_params *params)
{
    q8_0_cache(params);
    setenv("DOUBLEP_KV", "int8", 1);
}

static const struct {
    const char *name;
    void (*scenario)(run *);
    void (*change)(struct llama_context_params *);
    uint64_t n_copied;
} cases[] = {
    {"grow", grow, NULL, LONG + 404}, /* each token once */
    {"grow_bf16", grow, bf16_cache, LONG + 404},
    {"grow_q8_0", grow, q8_0_cache, LONG + 404},
    {"grow_int8", grow, int8_copies, LONG + 404},
    {"grow_on_other_threads", grow_on_other_threads, NULL, LONG + 404},
    {"remove_tail", remove_tail, NULL, 0},
    {"clear_all", clear_all, NULL, 0},
    {"clear_cells", clear_cells, NULL, 0},
    {"restore_state", restore_state, NULL, 0},
    {"restore_sequence", restore_sequence, NULL, 0},
    {"restore_in_place", restore_in_place, NULL, 0},
    {"shift", shift, NULL, 0},
    {"shift_in_place", shift_in_place, NULL, 0},
    {"drafts", drafts, NULL, 0},
    {"slots", slots, NULL, 0},
    {"many_slots", many_slots, twenty_slots, 0},
    {"slots_in_little_memory", slots_in_little_memory, little_memory, 0},
    {"slots_in_streams", slots, separate_streams, 0},
    {"copy_sequence", copy_sequence, NULL, 0},
    {"copy_to_a_stream", copy_sequence, separate_streams, 0},
};

START_TEST(case_test)
{
    printf("%s: ", cases[_i].name);
    compare(cases[_i].scenario, cases[_i].change, cases[_i].n_copied,
            cases[_i].change == int8_copies ? rounded : usual);
}
END_TEST

/* Of each part of a prompt the index is shown 64 queries, or all of fewer; but of a context's first two: one passes before
 * anything is claimed, the next makes the layers known. Steps and dense layers show none. */
START_TEST(prompts_show_their_queries)
{
    setenv("DOUBLEP_DENSE_LAYERS", "1", 1);
    run r = open_model("0.05");
    const uint64_t sparse_layers = (uint64_t)llama_model_n_layer(r.model) - 1;
    float *const logits = r.logits = malloc((size_t)MAX_LOGITS * (size_t)r.n_vocab * sizeof *logits);
    const plugin_counters *const counters = load_plugin();
    r.ctx = llama_init_from_model(r.model, r.params);
    ck_assert_ptr_nonnull(r.ctx);
    prompt(&r, 1, 0, 3 * 256 + 40, 0); /* four parts */
    ck_assert_uint_eq(counters->queries, sparse_layers * (64 + 40));
    prompt(&r, 1, 3 * 256 + 40, CONTEXT - 300, 0);
    const uint64_t seen = counters->queries;
    ck_assert_uint_eq(seen, sparse_layers * (64 + 40 + (CONTEXT - 300 - 3 * 256 - 40 + 255) / 256 * 64));
    steps(&r, 1, CONTEXT - 300, CONTEXT - 290, 0);
    ck_assert_uint_eq(counters->queries, seen);
    ck_assert_uint_gt(counters->sparse, 0);
    for (int i = 0; i < r.n * r.n_vocab; i++) ck_assert(isfinite(logits[i]));
    llama_free(r.ctx);
    llama_model_free(r.model);
    free(logits);
    unsetenv("DOUBLEP_DENSE_LAYERS");
}
END_TEST

START_TEST(no_more_threads_than_asked_for)
{
    run r = open_model("0.05");
    r.logits = malloc((size_t)MAX_LOGITS * (size_t)r.n_vocab * sizeof *r.logits);
    const plugin_counters *const counters = load_plugin();
    r.ctx = llama_init_from_model(r.model, r.params);
    ck_assert_ptr_nonnull(r.ctx);
    int at = 0;
    for (int n = 1; n <= 3; n++) {
        llama_set_n_threads(r.ctx, n, n);
        prompt(&r, 1, at, at + LONG, 0);
        steps(&r, 1, at + LONG, at + LONG + 4, 0);
        at += LONG + 4;
        ck_assert_int_eq(threads_of_this_process(), n);
    }
    ck_assert_uint_gt(counters->sparse, 0);
    llama_free(r.ctx);
    llama_model_free(r.model);
    free(r.logits);
}
END_TEST

START_TEST(declines_to_load)
{
    const size_t devices = ggml_backend_dev_count();
    ck_assert_ptr_null(ggml_backend_load(OTHER_PLUGIN_PATH)); /* built for another ggml */
    setenv("DOUBLEP_EPSILON", "much", 1);
    ck_assert_ptr_null(ggml_backend_load(PLUGIN_PATH));
    unsetenv("DOUBLEP_EPSILON");
    setenv("DOUBLEP_ISA", "mmx", 1);
    ck_assert_ptr_null(ggml_backend_load(PLUGIN_PATH));
    unsetenv("DOUBLEP_ISA");
    setenv("DOUBLEP", "off", 1);
    ck_assert_ptr_null(ggml_backend_load(PLUGIN_PATH));
    unsetenv("DOUBLEP");
    ck_assert_uint_eq(ggml_backend_dev_count(), devices);
    ck_assert_ptr_nonnull(ggml_backend_load(PLUGIN_PATH));
    ck_assert_uint_eq(ggml_backend_dev_count(), devices + 1);
}
END_TEST

/* Runs the case that is named, or all. */
int main(int argc, char **argv)
{
    const int n = sizeof cases / sizeof *cases;
    int first = 0, last = n;
    for (int i = 0; i < n && argc > 1; i++)
        if (strcmp(argv[1], cases[i].name) == 0) first = i, last = i + 1;
    const int file = mkstemp(model_path);
    if (file < 0) return 1;
    close(file);
    llama_log_set(quiet, NULL);
    ggml_backend_load_all_from_path(BACKENDS); /* those of a llama.cpp that loads them; others have theirs built in */
    struct llama_model_quantize_params expand = llama_model_quantize_default_params();
    expand.nthread = 1;
    expand.ftype = LLAMA_FTYPE_ALL_F32;
    expand.allow_requantize = true;
    if (llama_model_quantize(MODEL_PATH, model_path, &expand)) return 1;

    Suite *const suite = suite_create("llamacpp");
    TCase *const cache = tcase_create("cache"), *const others = tcase_create("others");
    tcase_set_timeout(cache, 120);
    tcase_set_timeout(others, 120);
    tcase_add_loop_test(cache, case_test, first, last);
    tcase_add_test(others, prompts_show_their_queries);
    tcase_add_test(others, no_more_threads_than_asked_for);
    tcase_add_test(others, declines_to_load);
    suite_add_tcase(suite, cache);
    if (argc == 1) suite_add_tcase(suite, others);
    const int failed = run_suite(suite);
    unlink(model_path);
    return failed;
}
