/* options.c: see options.h. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_ATTENTION = 0x100, KEY_BOTH, KEY_EPSILON, KEY_P1, KEY_P2, KEY_PAPER, KEY_PIN, KEY_KV, KEY_CHUNK, KEY_JSON };

static const struct argp_option options_list[] = {
    {"model", 'm', "FILE", 0, "Model: a GGUF file of the Llama architecture", 1},
    {"predict", 'n', "N", 0, "Generate at most N tokens (default: 128, or as many as the expected answer has)", 1},
    {"json", KEY_JSON, NULL, 0, "Print one JSON object, and nothing else, to stdout", 1},
    {NULL, 0, NULL, 0, "Attention:", 2},
    {"attention", KEY_ATTENTION, "METHOD", 0, "dense, double-p (default), or both as dense,double-p", 2},
    {"both", KEY_BOTH, NULL, 0, "The same as --attention dense,double-p: one prefill, then both answers", 2},
    {"epsilon", KEY_EPSILON, "E", 0, "Error budget: refine clusters until the expected error is below E (default 0.07)", 2},
    {"p1", KEY_P1, "X", 0, "Share of the softmax mass that stage 1 keeps (default 0.95)", 2},
    {"p2", KEY_P2, "Y", 0, "Refine by mass instead of the error budget: the clusters that hold the share Y", 2},
    {"paper", KEY_PAPER, NULL, 0, "The paper's form: p1 0.95, p2 0.7, spherical clusters, nothing that we added", 2},
    {NULL, 0, NULL, 0, "Machine:", 3},
    {"threads", 't', "T", 0, "Threads (default: one per core)", 3},
    {"pin", KEY_PIN, "POLICY", 0, "Bind threads to cores: off (default), compact, scatter", 3},
    {"kv", KEY_KV, "TYPE", 0, "Type of cached keys and values: bf16 (default), f16, f32, int8", 3},
    {"chunk", KEY_CHUNK, "N", 0, "Tokens of the prompt that go through the layers together (default 512)", 3},
    {0},
};

void model_options_init(model_options *options)
{
    *options = (model_options){
        .kv_type = DP_BF16, .chunk = 512, .epsilon = -1, .p1 = -1, .p2 = -1};
}

double option_number(const struct argp_state *state, const char *name, const char *text, double min, double max)
{
    char *end = NULL;
    errno = 0;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno == ERANGE || !(value >= min && value <= max))
        argp_error(state, "--%s is \"%s\", must be a number from %g to %g", name, text, min, max);
    return value;
}

uint64_t option_integer(const struct argp_state *state, const char *name, const char *text, uint64_t min, uint64_t max)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno == ERANGE || value < min || value > max)
        argp_error(state, "--%s is \"%s\", must be a whole number from %llu to %llu", name, text,
                   (unsigned long long)min, (unsigned long long)max);
    return value;
}

/* The index of text among the names; argp_error where it is none of them. */
static int option_name(const struct argp_state *state, const char *option, const char *text, const char *const *names,
                       int n_names)
{
    char list[128] = "";
    for (int i = 0; i < n_names; i++) {
        if (strcmp(text, names[i]) == 0)
            return i;
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", i ? ", " : "", names[i]);
    }
    argp_error(state, "--%s is \"%s\", must be one of: %s", option, text, list);
    return 0;
}

static const char *const kv_names[] = {[DP_F32] = "f32", [DP_F16] = "f16", [DP_BF16] = "bf16", [DP_INT8] = "int8"};
static const char *const pin_names[] = {[DP_PIN_OFF] = "off", [DP_PIN_COMPACT] = "compact", [DP_PIN_SCATTER] = "scatter"};

const char *kv_type_name(dp_type type)
{
    return kv_names[type];
}

dp_type option_kv_type(const struct argp_state *state, const char *text)
{
    return (dp_type)option_name(state, "kv", text, kv_names, DP_TYPE_COUNT);
}

dp_pinning option_pinning(const struct argp_state *state, const char *text)
{
    return (dp_pinning)option_name(state, "pin", text, pin_names, 3);
}

static void parse_attention(const struct argp_state *state, model_options *o, const char *text)
{
    static const char *const names[] = {"dense", "double-p", "dense,double-p"};
    const int choice = option_name(state, "attention", text, names, 3);
    o->dense = choice != 1;
    o->double_p = choice != 0;
}

static void settle(const struct argp_state *state, model_options *o)
{
    if (!o->model_path)
        argp_error(state, "--model FILE is missing");
    if (o->epsilon >= 0 && (o->p2 >= 0 || o->paper))
        argp_error(state, "--epsilon does not go with %s: they are two rules for the same choice",
                   o->paper ? "--paper" : "--p2");
    if (!o->dense && !o->double_p)
        o->double_p = true;
    if (o->dense) {
        session_method *const m = &o->methods[o->n_methods++];
        m->name = "dense";
        dp_attention_params_init(&m->params);
        m->params.method = DP_DENSE;
    }
    if (!o->double_p)
        return;
    session_method *const m = &o->methods[o->n_methods++];
    m->name = "double-p";
    if (o->paper)
        dp_attention_params_init_paper(&m->params);
    else
        dp_attention_params_init(&m->params);
    m->params.method = DP_DOUBLE_P;
    if (o->epsilon >= 0)
        m->params.epsilon = (float)o->epsilon;
    if (o->p1 >= 0)
        m->params.p1 = (float)o->p1;
    if (o->p2 >= 0) {
        m->params.refine = DP_REFINE_TOP_P;
        m->params.p2 = (float)o->p2;
    }
    if (m->params.refine == DP_REFINE_TOP_P && m->params.p2 > m->params.p1)
        argp_error(state, "--p2 is %g, must be at most p1, which is %g", (double)m->params.p2, (double)m->params.p1);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    model_options *const o = state->input;
    switch (key) {
    case 'm':
        o->model_path = arg;
        return 0;
    case 'n':
        o->max_tokens = option_integer(state, "predict", arg, 1, 1u << 30);
        return 0;
    case 't':
        o->n_threads = (int)option_integer(state, "threads", arg, 1, 1024);
        return 0;
    case KEY_JSON:
        o->json = true;
        return 0;
    case KEY_ATTENTION:
        parse_attention(state, o, arg);
        return 0;
    case KEY_BOTH:
        o->dense = o->double_p = true;
        return 0;
    case KEY_EPSILON:
        o->epsilon = option_number(state, "epsilon", arg, 0, 1);
        return 0;
    case KEY_P1:
        o->p1 = option_number(state, "p1", arg, 0, 1);
        return 0;
    case KEY_P2:
        o->p2 = option_number(state, "p2", arg, 0, 1);
        return 0;
    case KEY_PAPER:
        o->paper = true;
        return 0;
    case KEY_PIN:
        o->pinning = option_pinning(state, arg);
        return 0;
    case KEY_KV:
        o->kv_type = option_kv_type(state, arg);
        return 0;
    case KEY_CHUNK:
        o->chunk = (uint32_t)option_integer(state, "chunk", arg, 1, 65536);
        return 0;
    case ARGP_KEY_END:
        settle(state, o);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp model_options_argp = {.options = options_list, .parser = parse};

bool model_options_open(const model_options *options, model **m, model_context **context, char *error,
                        size_t error_size)
{
    if (options->n_threads > 0)
        omp_set_num_threads(options->n_threads); /* expanding the weights is work for threads, too */
    *m = model_load(options->model_path, error, error_size);
    if (!*m)
        return false;
    model_context_config config;
    model_context_config_init(&config, *m);
    config.runtime.n_threads = options->n_threads;
    config.runtime.pinning = options->pinning;
    config.chunk = options->chunk;
    config.n_sequences = (uint32_t)options->n_methods;
    for (size_t i = 0; i < options->n_methods; i++) {
        dp_sequence_config *const sequence = &config.sequences[i];
        if (options->paper) dp_sequence_config_set_paper(sequence);
        sequence->type = options->kv_type;
        config.dense[i] = options->methods[i].params.method == DP_DENSE;
    }
    *context = model_context_create(*m, &config, error, error_size);
    return *context != NULL;
}
