/* bench_options.c: the options of `doublep bench`. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

enum {
    KEY_SHAPE = 0x300, KEY_CONTEXT, KEY_KV, KEY_METHODS, KEY_TRACE, KEY_STEPS, KEY_GROWTH, KEY_LAYERS, KEY_JSON, KEY_SVG,
    KEY_FROM, KEY_PIN, KEY_BUFFER,
};

static const struct argp_option options_list[] = {
    {"shape", KEY_SHAPE, "SHAPE", 0,
     "llama-3.1-8b (default), qwen3-8b, needle, or HxKVxD: query heads, KV heads, head dimension", 1},
    {"context", KEY_CONTEXT, "N[,N...]", 0, "Tokens in the cache (default 32768, or the recording's); several: one run each; 128K means 131072", 1},
    {"kv", KEY_KV, "TYPE", 0, "Type of cached keys and values: bf16 (default), f16, f32, int8", 1},
    {"methods", KEY_METHODS, "LIST", 0,
     "Methods as `doublep eval` names them, with settings (default: dense,double-p; e.g. double-p:epsilon=0.1,quest)", 1},
    {"trace", KEY_TRACE, "FILE[,FILE...]", 0,
     "Recordings of `doublep run --record` instead of made-up keys, values and queries", 1},
    {"steps", KEY_STEPS, "N", 0, "Timed steps of each method (default 64)", 1},
    {"growth", KEY_GROWTH, "N", 0, "Then decode N tokens with the last method, and time appending and the index that grows (default 128)", 1},
    {"layers", KEY_LAYERS, "N", 0, "Layers that take turns (default: 2 GiB worth of them, 2 to 8)", 1},
    {"threads", 't', "T", 0, "Threads (default: one per core)", 2},
    {"pin", KEY_PIN, "POLICY", 0, "Bind threads to cores: off (default), compact, scatter", 2},
    {"buffer", KEY_BUFFER, "MIB", 0, "Memory per thread that the bandwidth is measured with (default: 256, or twice the last-level cache for all threads, if that is more)", 2},
    {"json", KEY_JSON, "FILE", 0, "Write the figures as JSON (to stdout, instead of the table, where FILE is -)", 3},
    {"svg", KEY_SVG, "FILE", 0, "Draw step time against context, with gnuplot", 3},
    {"from", KEY_FROM, "FILE", 0, "Measure nothing: draw --svg from this JSON", 3},
    {0},
};

/* "32768", "32K", "1M". */
static uint64_t parse_count(const struct argp_state *state, const char *name, const char *text, uint64_t max)
{
    char digits[32];
    const size_t length = strlen(text);
    const char unit = length ? text[length - 1] : 0;
    const unsigned shift = unit == 'K' || unit == 'k' ? 10 : unit == 'M' || unit == 'm' ? 20 : 0;
    snprintf(digits, sizeof(digits), "%.*s", (int)(length - (shift > 0)), text);
    return option_integer(state, name, digits, 1, max >> shift) << shift;
}

/* Calls `each` with the parts of a list, cut at commas in place. */
static void for_each_part(struct argp_state *state, bench_settings *s, char *list,
                          void (*each)(struct argp_state *state, bench_settings *s, const char *part))
{
    char *rest = NULL;
    for (char *part = strtok_r(list, ",", &rest); part; part = strtok_r(NULL, ",", &rest))
        each(state, s, part);
}

static void add_context(struct argp_state *state, bench_settings *s, const char *part)
{
    if (s->n_contexts == BENCH_CONTEXTS)
        argp_error(state, "--context has more than %d numbers", BENCH_CONTEXTS);
    const uint64_t context = parse_count(state, "context", part, 1u << 26);
    if (context < 256)
        argp_error(state, "--context is \"%s\", must be at least 256", part);
    if (s->n_contexts > 0 && context <= s->contexts[s->n_contexts - 1])
        argp_error(state, "--context must be a rising list of numbers");
    s->contexts[s->n_contexts++] = context;
}

static void add_trace(struct argp_state *state, bench_settings *s, const char *part)
{
    if (s->n_traces == BENCH_TRACES)
        argp_error(state, "--trace has more than %d files", BENCH_TRACES);
    s->traces[s->n_traces++] = part;
}

static void add_methods(struct argp_state *state, bench_settings *s, const char *text)
{
    char reason[512];
    if (!eval_methods_add(&s->methods, text, reason, sizeof(reason)))
        argp_error(state, "--methods: %s", reason);
    if (s->methods.count > BENCH_METHODS)
        argp_error(state, "--methods has more than %d methods", BENCH_METHODS);
}

size_t bench_dense(const bench_settings *s)
{
    size_t i = 0;
    while (i < s->methods.count && !method_is_reference(s->methods.list[i].type, s->methods.list[i].settings))
        i++;
    return i;
}

static void parse_shape(const struct argp_state *state, bench_settings *s, const char *text)
{
    static const bench_shape known[] = {
        {"llama-3.1-8b", 32, 8, 128}, {"qwen3-8b", 32, 8, 128}, {"needle", 8, 2, 64}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(text, known[i].name) == 0) {
            s->shape = known[i];
            return;
        }
    unsigned heads = 0, kv_heads = 0, dim = 0;
    int end = 0;
    if (sscanf(text, "%4ux%4ux%3u%n", &heads, &kv_heads, &dim, &end) != 3 || text[end] != '\0' || kv_heads == 0 ||
        heads == 0 || heads > 1024 || heads % kv_heads != 0 || dim < 16 || dim > 512 || dim % 8 != 0)
        argp_error(state, "--shape is \"%s\", must be llama-3.1-8b, qwen3-8b, needle, or HxKVxD with H a multiple of KV, "
                   "at most 1024, and D a multiple of 8 from 16 to 512", text);
    s->shape = (bench_shape){.n_query_heads = heads, .n_kv_heads = kv_heads, .dim = dim};
    snprintf(s->shape.name, sizeof(s->shape.name), "%ux%ux%u", heads, kv_heads, dim);
}

static void settle(struct argp_state *state, bench_settings *s)
{
    if (s->from && !s->svg)
        argp_error(state, "--from needs --svg");
    if (s->methods.count == 0)
        add_methods(state, s, "dense,double-p");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    bench_settings *const s = state->input;
    switch (key) {
    case KEY_SHAPE:
        parse_shape(state, s, arg);
        return 0;
    case KEY_CONTEXT:
        for_each_part(state, s, arg, add_context);
        return 0;
    case KEY_KV:
        s->type = option_kv_type(state, arg);
        return 0;
    case KEY_METHODS:
        add_methods(state, s, arg);
        return 0;
    case KEY_TRACE:
        for_each_part(state, s, arg, add_trace);
        return 0;
    case KEY_STEPS:
        s->steps = option_integer(state, "steps", arg, 1, 100000);
        return 0;
    case KEY_GROWTH:
        s->growth = parse_count(state, "growth", arg, 1u << 20);
        return 0;
    case KEY_LAYERS:
        s->n_layers = (uint32_t)option_integer(state, "layers", arg, 1, 4096);
        return 0;
    case 't':
        s->n_threads = (int)option_integer(state, "threads", arg, 1, 1024);
        return 0;
    case KEY_PIN:
        s->pinning = option_pinning(state, arg);
        return 0;
    case KEY_BUFFER:
        s->buffer_bytes = (size_t)option_integer(state, "buffer", arg, 1, 65536) << 20;
        return 0;
    case KEY_JSON:
        s->json = arg;
        return 0;
    case KEY_SVG:
        s->svg = arg;
        return 0;
    case KEY_FROM:
        s->from = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option", arg);
        return 0;
    case ARGP_KEY_END:
        settle(state, s);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void bench_options_parse(int argc, char **argv, bench_settings *settings)
{
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .doc = "Measure one layer's decode step, dense and with Double-P.\v"
               "Several layers of keys and values, far more than the caches hold, take turns; in each step every method "
               "attends from the same query, and between two of them a buffer larger than the last-level cache is read. "
               "Beside the times stand the bytes that a method read and the time that these bytes take at the bandwidth "
               "measured in the same run.",
    };
    *settings = (bench_settings){.type = DP_BF16, .steps = 64, .growth = 128};
    if (argp_parse(&argp, argc, argv, 0, NULL, settings) != 0)
        exit(EXIT_USAGE);
}
