/* eval.c: `doublep eval`: how close methods of attention are to dense attention, and what they read for it. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "commands.h"
#include "eval_report.h"
#include "eval_run.h"
#include "options.h"

enum { MAX_FILES = 32, TEXT_WINDOW = 4096, CONTINUATION = 256 };

typedef struct eval_options {
    const char *model_path;
    const char *prompts[MAX_FILES], *texts[MAX_FILES];
    size_t n_prompts, n_texts;
    eval_methods methods;
    eval_selection selection;
    size_t window, n_scored; /* of a text */
    eval_run_config run;
    const char *cache, *any_build, *json, *svg;
    bool positions;
} eval_options;

enum {
    KEY_PROMPTS = 0x300, KEY_TEXT, KEY_CONTEXT, KEY_SCORE, KEY_METHODS, KEY_GENERATE, KEY_CONTINUE, KEY_LIMIT,
    KEY_PER_TASK, KEY_SELECT, KEY_CACHE, KEY_ANY_BUILD, KEY_LOGITS_ONLY, KEY_POSITIONS, KEY_JSON, KEY_SVG, KEY_PIN,
    KEY_KV, KEY_CHUNK,
};

static const struct argp_option options_list[] = {
    {"model", 'm', "FILE", 0, "Model: a GGUF file of the Llama architecture", 1},
    {"prompts", KEY_PROMPTS, "FILE", 0, "JSON Lines with task, id, context, question and answer; may be given again", 1},
    {"select", KEY_SELECT, "TASK[:ID],...", 0, "Only the prompts of these tasks, or with these ids", 1},
    {"per-task", KEY_PER_TASK, "N", 0, "At most N prompts of each task in each file", 1},
    {"limit", KEY_LIMIT, "N", 0, "At most N prompts (or windows) altogether", 1},
    {"text", KEY_TEXT, "FILE", 0, "Windows of a text instead of prompts: predict the end of each; may be given again", 1},
    {"context", KEY_CONTEXT, "N", 0, "Tokens in a window (default 4096)", 1},
    {"score", KEY_SCORE, "N", 0, "Predict the last N tokens of a window (default: a quarter of them)", 1},
    {NULL, 0, NULL, 0, "Methods:", 2},
    {"methods", KEY_METHODS, "LIST", 0, "Names with settings: dense,double-p:epsilon=0.1,quest:share=0.03,...", 2},
    {"generate", KEY_GENERATE, "N", OPTION_ARG_OPTIONAL,
     "Let each method generate freely, up to N tokens (default 128), in place of feeding it the answer", 2},
    {"continue", KEY_CONTINUE, "N", OPTION_ARG_OPTIONAL,
     "Feed N tokens (default 256) of dense attention's own greedy continuation in place of the answer", 2},
    {"logits-only", KEY_LOGITS_ONLY, NULL, 0, "Leave out the comparison of attention outputs, which takes as long as "
     "dense attention", 2},
    {NULL, 0, NULL, 0, "Results:", 3},
    {"json", KEY_JSON, "FILE", 0, "Write all figures to a file, or with - to stdout in place of the tables", 3},
    {"svg", KEY_SVG, "FILE", 0, "Draw KL against bytes, a curve per method over its settings (needs gnuplot)", 3},
    {"positions", KEY_POSITIONS, NULL, 0, "Also a table over the position in the answer", 3},
    {"cache", KEY_CACHE, "DIR", 0, "Keep prefilled prompts and results here, and go on from what is there", 3},
    {"any-build", KEY_ANY_BUILD, "METHOD,...", OPTION_ARG_OPTIONAL,
     "Accept kept results of these methods (default: all) from other builds of this command", 3},
    {NULL, 0, NULL, 0, "Machine:", 4},
    {"threads", 't', "T", 0, "Threads (default: one per core)", 4},
    {"pin", KEY_PIN, "POLICY", 0, "Bind threads to cores: off (default), compact, scatter", 4},
    {"kv", KEY_KV, "TYPE", 0, "Type of cached keys and values: bf16 (default), f16, f32, int8", 4},
    {"chunk", KEY_CHUNK, "N", 0, "Tokens of the prompt that go through the layers together (default 512)", 4},
    {0},
};

static void add_file(const struct argp_state *state, const char **files, size_t *n, const char *path)
{
    if (*n == MAX_FILES)
        argp_error(state, "more than %d files", MAX_FILES);
    files[(*n)++] = path;
}

static void set_mode(const struct argp_state *state, eval_options *o, eval_mode mode, const char *name, const char *arg,
                     size_t usual)
{
    if (o->run.mode != EVAL_FORCED && o->run.mode != mode)
        argp_error(state, "--generate and --continue do not go together");
    o->run.mode = mode;
    o->run.max_tokens = arg ? option_integer(state, name, arg, 1, 1u << 20) : usual;
}

static void settle(const struct argp_state *state, eval_options *o)
{
    char error[512];
    if (!o->model_path)
        argp_error(state, "--model FILE is missing");
    if ((o->n_prompts == 0) == (o->n_texts == 0))
        argp_error(state, "either --prompts FILE or --text FILE is needed");
    if (o->n_scored == 0)
        o->n_scored = o->window / 4;
    if (o->n_scored + 2 > o->window)
        argp_error(state, "--score is %zu, must leave something of a window of %zu tokens", o->n_scored, o->window);
    if (o->methods.count == 0 && !eval_methods_add(&o->methods, "dense,double-p", error, sizeof(error)))
        argp_error(state, "%s", error);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    eval_options *const o = state->input;
    char error[512];
    switch (key) {
    case 'm': o->model_path = arg; return 0;
    case 't': o->run.n_threads = (int)option_integer(state, "threads", arg, 1, 1024); return 0;
    case KEY_PROMPTS: add_file(state, o->prompts, &o->n_prompts, arg); return 0;
    case KEY_TEXT: add_file(state, o->texts, &o->n_texts, arg); return 0;
    case KEY_CONTEXT: o->window = option_integer(state, "context", arg, 16, 1u << 24); return 0;
    case KEY_SCORE: o->n_scored = option_integer(state, "score", arg, 1, 1u << 24); return 0;
    case KEY_SELECT: o->selection.tasks = arg; return 0;
    case KEY_PER_TASK: o->selection.per_task = option_integer(state, "per-task", arg, 1, SIZE_MAX); return 0;
    case KEY_LIMIT: o->selection.limit = option_integer(state, "limit", arg, 1, SIZE_MAX); return 0;
    case KEY_GENERATE: set_mode(state, o, EVAL_GENERATE, "generate", arg, 128); return 0;
    case KEY_CONTINUE: set_mode(state, o, EVAL_CONTINUE, "continue", arg, CONTINUATION); return 0;
    case KEY_LOGITS_ONLY: o->run.attention_metrics = false; return 0;
    case KEY_POSITIONS: o->positions = true; return 0;
    case KEY_CACHE: o->cache = arg; return 0;
    case KEY_ANY_BUILD: o->any_build = arg ? arg : ""; return 0;
    case KEY_JSON: o->json = arg; return 0;
    case KEY_SVG: o->svg = arg; return 0;
    case KEY_PIN: o->run.pinning = option_pinning(state, arg); return 0;
    case KEY_KV: o->run.kv_type = option_kv_type(state, arg); return 0;
    case KEY_CHUNK: o->run.chunk = (uint32_t)option_integer(state, "chunk", arg, 1, 65536); return 0;
    case KEY_METHODS:
        if (!eval_methods_add(&o->methods, arg, error, sizeof(error)))
            argp_error(state, "--methods: %s", error);
        return 0;
    case ARGP_KEY_ARG: argp_error(state, "\"%s\" is not an option", arg); return 0;
    case ARGP_KEY_END: settle(state, o); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static bool load_cases(const eval_options *o, const tokenizer *t, eval_cases *cases, char *error, size_t error_size)
{
    bool done = true;
    for (size_t i = 0; done && i < o->n_prompts; i++)
        done = eval_cases_add_prompts(cases, o->prompts[i], &o->selection, t, error, error_size);
    for (size_t i = 0; done && i < o->n_texts; i++)
        done = eval_cases_add_text(cases, o->texts[i], o->window, o->n_scored, o->selection.limit - cases->count, t,
                                   error, error_size);
    return done;
}

/* ---- Measuring ----------------------------------------------------------------------------------------------------- */

typedef struct evaluation {
    const eval_options *options;
    const eval_cases *cases;
    eval_store *store;
    eval_runner *runner;
    eval_result *results; /* [methods][cases] */
    uint64_t start_ns;
    size_t n_run; /* not from the store */
} evaluation;

static const char *const mode_names[] = {
    [EVAL_FORCED] = "forced", [EVAL_CONTINUE] = "continue", [EVAL_GENERATE] = "generate"};

/* All that a result depends on; NULL where memory runs out. */
static char *result_key(const evaluation *e, const eval_case *c, const eval_method *m)
{
    const eval_run_config *const run = &e->options->run;
    char *key;
    return asprintf(&key, "%016llx %016llx %s %s%zu%s %s", (unsigned long long)run->model_hash,
                    (unsigned long long)c->hash, kv_type_name(run->kv_type), mode_names[run->mode],
                    run->mode == EVAL_FORCED ? 0 : run->max_tokens, run->attention_metrics ? "" : " logits", m->full) < 0
               ? NULL
               : key;
}

/* Whether --any-build names the method. */
static bool any_build(const eval_options *o, const char *name)
{
    if (!o->any_build || !*o->any_build)
        return o->any_build != NULL;
    for (const char *at = o->any_build; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strcspn(at, ",") == strlen(name) && strncmp(at, name, strlen(name)) == 0)
            return true;
    }
    return false;
}

static void show(const evaluation *e, size_t number, const eval_case *c, const eval_method *m, const eval_result *r)
{
    const double minutes = (double)(clock_ns() - e->start_ns) / 60e9;
    fprintf(stderr, "[%zu/%zu, %.1f min] %s %u %s: KL %.5f, error %.4f, bytes %.2f %%, %s\n", number + 1, e->cases->count,
            minutes, c->name, c->n_context, m->label, eval_ratio(r->kl_sum, r->kl_tokens),
            eval_ratio(r->error_sum, r->head_steps), 100 * eval_ratio(r->bytes_index + r->bytes_rows, r->bytes_dense),
            r->answers_equal > 0 ? "equal" : "DIFFERENT");
}

/* One method on the prompt that the runner has; `dense` is the reference's own result. */
static bool evaluate_method(evaluation *e, size_t number, size_t method, const eval_result *dense, char *error,
                            size_t error_size)
{
    const eval_case *const c = &e->cases->list[number];
    const eval_method *const m = &e->options->methods.list[method];
    eval_result *const result = &e->results[method * e->cases->count + number];
    const bool is_dense = method_is_reference(m->type, m->settings);
    bool done = is_dense ? eval_result_add(result, dense) : eval_runner_measure(e->runner, m, result, error, error_size);
    char *const key = result_key(e, c, m);
    if (is_dense && !done)
        snprintf(error, error_size, "out of memory");
    if (done && !key) {
        snprintf(error, error_size, "out of memory");
        done = false;
    }
    done = done && eval_store_save_result(e->store, key, result, error, error_size);
    free(key);
    if (done)
        show(e, number, c, m, result);
    return done;
}

static bool evaluate_case(evaluation *e, size_t number, char *error, size_t error_size)
{
    const eval_options *const o = e->options;
    const eval_case *const c = &e->cases->list[number];
    bool *const missing = calloc(o->methods.count, sizeof(*missing));
    bool done = missing != NULL, any = false;
    snprintf(error, error_size, "out of memory");
    for (size_t i = 0; done && i < o->methods.count; i++) {
        char *const key = result_key(e, c, &o->methods.list[i]);
        done = key != NULL;
        missing[i] = done && !eval_store_load_result(e->store, key, any_build(o, o->methods.list[i].type->name),
                                                     &e->results[i * e->cases->count + number]);
        any |= missing[i];
        free(key);
    }
    if (done && any) {
        eval_result dense = {0};
        progress bar;
        progress_start(&bar, c->name);
        done = eval_runner_start(e->runner, c, &bar, &dense, error, error_size);
        progress_end(&bar);
        for (size_t i = 0; done && i < o->methods.count; i++)
            if (missing[i])
                done = evaluate_method(e, number, i, &dense, error, error_size);
        eval_result_free(&dense);
    }
    free(missing);
    return done;
}

static bool write_json(const json_t *figures, const char *path, char *error, size_t error_size)
{
    const size_t flags = JSON_INDENT(1) | JSON_REAL_PRECISION(9) | JSON_PRESERVE_ORDER;
    const bool done = strcmp(path, "-") == 0 ? json_dumpf(figures, stdout, flags) == 0 && putchar('\n') != EOF
                                             : json_dump_file(figures, path, flags) == 0;
    if (!done)
        snprintf(error, error_size, "%s cannot be written", path);
    return done;
}

static bool report_all(const evaluation *e, char *error, size_t error_size)
{
    const eval_options *const o = e->options;
    const eval_report report = {.model_path = o->model_path,
                                .kv = kv_type_name(o->run.kv_type),
                                .mode = mode_names[o->run.mode],
                                .methods = &o->methods,
                                .cases = e->cases,
                                .results = e->results,
                                .attention = o->run.attention_metrics,
                                .texts = o->n_texts > 0 && o->run.mode == EVAL_FORCED};
    const bool tables = !o->json || strcmp(o->json, "-") != 0;
    json_t *const figures = o->json || o->svg ? eval_report_json(&report) : NULL;
    bool done = !(o->json || o->svg) || figures;
    if (done && tables)
        done = eval_report_tables(&report, stdout) && (!o->positions || eval_report_positions(&report, stdout));
    if (!done)
        snprintf(error, error_size, "out of memory");
    done = done && (!o->json || write_json(figures, o->json, error, error_size));
    done = done && (!o->svg || eval_report_svg(figures, o->svg, error, error_size));
    json_decref(figures);
    if (done && (fflush(stdout) != 0 || ferror(stdout))) {
        snprintf(error, error_size, "stdout cannot be written");
        done = false;
    }
    return done;
}

static bool evaluate(eval_options *o, const model *m, const eval_cases *cases, char *error, size_t error_size)
{
    const size_t n = o->methods.count * cases->count;
    evaluation e = {.options = o, .cases = cases, .start_ns = clock_ns()};
    e.results = calloc(n, sizeof(*e.results));
    bool done = e.results != NULL;
    if (!done)
        snprintf(error, error_size, "out of memory");
    done = done && eval_store_hash_file(o->model_path, &o->run.model_hash, error, error_size);
    done = done && (e.store = eval_store_open(o->cache, error, error_size));
    done = done && (e.runner = eval_runner_create(m, &o->run, e.store, error, error_size));
    for (size_t i = 0; done && i < cases->count; i++)
        done = evaluate_case(&e, i, error, error_size);
    done = done && report_all(&e, error, error_size);
    for (size_t i = 0; e.results && i < n; i++)
        eval_result_free(&e.results[i]);
    free(e.results);
    eval_runner_free(e.runner);
    eval_store_close(e.store);
    return done;
}

int cmd_eval(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .doc = "Compare methods of attention with dense attention on prompts with known answers, or on text.\v"
               "Each prompt is prefilled densely once; question and answer then go token by token through each method. "
               "Methods: dense, double-p, double-p-paper, retroinfer, quest, quest+twilight, oracle; settings follow a "
               "name as :setting=value.",
    };
    eval_options o = {.selection = {.per_task = SIZE_MAX, .limit = SIZE_MAX},
                      .window = TEXT_WINDOW,
                      .run = {.kv_type = DP_BF16, .chunk = 512, .attention_metrics = true}};
    if (argp_parse(&argp, argc, argv, 0, NULL, &o) != 0)
        return EXIT_USAGE;
    char error[512];
    eval_cases cases = {0};
    model *const m = model_load(o.model_path, error, sizeof(error));
    const bool done = m && load_cases(&o, m->tokenizer, &cases, error, sizeof(error)) &&
                      evaluate(&o, m, &cases, error, sizeof(error));
    eval_cases_free(&cases);
    eval_methods_free(&o.methods);
    model_free(m);
    if (!done)
        fprintf(stderr, "doublep eval: %s\n", error);
    return done ? 0 : EXIT_RUNTIME;
}
