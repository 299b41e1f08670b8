/* run.c: `doublep run`: one prompt, answered with one kind of attention or with both. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "files.h"
#include "options.h"
#include "prefix.h"
#include "progress.h"
#include "report.h"
#include "trace.h"

typedef struct run_options {
    model_options common;
    const char *prompt, *prompt_file, *question;
    double temperature;
    uint64_t seed;
    const char *record;
    bool record_all, record_layers[TRACE_MAX_LAYERS];
    uint64_t last_record_layer;
    const char *prefix, *save_prefix;
} run_options;

enum { DEFAULT_TOKENS = 128 };
enum { KEY_PROMPT_FILE = 0x200, KEY_QUESTION, KEY_TEMPERATURE, KEY_SEED, KEY_RECORD, KEY_RECORD_LAYERS, KEY_PREFIX, KEY_SAVE_PREFIX };

static const struct argp_option options_list[] = {
    {"prompt", 'p', "TEXT", 0, "The prompt", 0},
    {"prompt-file", KEY_PROMPT_FILE, "FILE", 0, "The prompt from a file (gzip is understood), or from stdin where FILE is -", 0},
    {"question", KEY_QUESTION, "TEXT", 0, "Follows the prompt, token by token through the chosen attention", 0},
    {"temperature", KEY_TEMPERATURE, "X", 0, "Sample from softmax(logits / X) (default 0: the likeliest token)", 0},
    {"seed", KEY_SEED, "S", 0, "Seed of the random numbers (default 0)", 0},
    {"record", KEY_RECORD, "FILE", 0, "Write keys, values and decode queries to FILE, for `doublep bench --trace`", 0},
    {"record-layers", KEY_RECORD_LAYERS, "N[,N...]", 0, "Record only these layers, counted from 0", 0},
    {"save-prefix", KEY_SAVE_PREFIX, "FILE", 0, "Write the prompt's keys, values and index to FILE, for --prefix", 0},
    {"prefix", KEY_PREFIX, "FILE", 0, "Do not read what FILE has of the prompt's beginning", 0},
    {0},
};

static void parse_layers(struct argp_state *state, run_options *o, char *list)
{
    char *rest = NULL;
    o->record_all = false;
    for (char *part = strtok_r(list, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        const uint64_t layer = option_integer(state, "record-layers", part, 0, TRACE_MAX_LAYERS - 1);
        o->record_layers[layer] = true;
        o->last_record_layer = layer > o->last_record_layer ? layer : o->last_record_layer;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    run_options *const o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->common;
        return 0;
    case 'p':
        o->prompt = arg;
        return 0;
    case KEY_PROMPT_FILE:
        o->prompt_file = arg;
        return 0;
    case KEY_QUESTION:
        o->question = arg;
        return 0;
    case KEY_TEMPERATURE:
        o->temperature = option_number(state, "temperature", arg, 0, 1000);
        return 0;
    case KEY_SEED:
        o->seed = option_integer(state, "seed", arg, 0, UINT64_MAX);
        return 0;
    case KEY_RECORD:
        o->record = arg;
        return 0;
    case KEY_RECORD_LAYERS:
        parse_layers(state, o, arg);
        return 0;
    case KEY_PREFIX:
        o->prefix = arg;
        return 0;
    case KEY_SAVE_PREFIX:
        o->save_prefix = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option; a prompt goes with --prompt", arg);
        return 0;
    case ARGP_KEY_END:
        if (!o->prompt == !o->prompt_file)
            argp_error(state, "one of --prompt and --prompt-file is needed");
        if (!o->record && !o->record_all)
            argp_error(state, "--record-layers needs --record");
        if (o->record && o->prefix)
            argp_error(state, "--record needs the whole prompt, without --prefix");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_text(void *user, const char *text, size_t length)
{
    (void)user;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
}

static int fail(int status, const char *reason)
{
    fprintf(stderr, "doublep run: %s\n", reason);
    return status;
}

/* Prefill, then an answer per method; prints all. */
static int answer(const run_options *o, model_context *context, const session_prompt *prompt)
{
    char error[512];
    const model_options *const common = &o->common;
    session_prefill_result prefill = {0};
    session_answer answers[SESSION_MAX_METHODS] = {0};
    progress bar;
    progress_start(&bar, "prefill");
    bool done = (!o->prefix || prefix_load(context, o->prefix, &prompt->prefill, error, sizeof(error))) &&
                session_prefill(context, prompt, common->methods, progress_show, &bar, &prefill, error, sizeof(error));
    progress_end(&bar);
    done = done && (!o->save_prefix || prefix_save(context, o->save_prefix, &prompt->prefill, error, sizeof(error)));
    const session_settings settings = {.max_tokens = common->max_tokens ? common->max_tokens : DEFAULT_TOKENS,
                                       .temperature = o->temperature,
                                       .seed = o->seed,
                                       .on_text = common->json ? NULL : print_text};
    for (uint32_t i = 0; done && i < common->n_methods; i++) {
        if (!common->json && common->n_methods > 1)
            printf("[%s]\n", common->methods[i].name);
        done = session_answer_create(context, i, prompt, &common->methods[i], &settings, &answers[i], error,
                                     sizeof(error));
        if (!common->json)
            printf("\n");
        fflush(stdout);
    }
    const report r = {common, context, prompt, &prefill, answers};
    json_t *object = NULL;
    if (done && !common->json) {
        fputc('\n', stderr);
        report_table(&r, stderr);
    } else if (done) {
        object = report_json(&r);
        if (object)
            json_object_set_new(object, "seed", json_integer((json_int_t)o->seed));
        if (!object || json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) != 0) {
            snprintf(error, sizeof(error), "the JSON object could not be written");
            done = false;
        }
        putchar('\n');
    }
    if (done && (fflush(stdout) != 0 || ferror(stdout))) {
        snprintf(error, sizeof(error), "stdout cannot be written");
        done = false;
    }
    json_decref(object);
    for (size_t i = 0; i < SESSION_MAX_METHODS; i++)
        session_answer_free(&answers[i]);
    return done ? 0 : fail(EXIT_RUNTIME, error);
}

static bool start_recording(const run_options *o, const model *m, model_context *context, trace_writer **recorder,
                            char *error, size_t error_size)
{
    if (!o->record)
        return true;
    if (o->last_record_layer >= m->shape.n_layers) {
        snprintf(error, error_size, "--record-layers has %llu, the model's layers are 0 to %u",
                 (unsigned long long)o->last_record_layer, m->shape.n_layers - 1);
        return false;
    }
    *recorder = trace_writer_create(o->record, &m->shape, o->record_all ? NULL : o->record_layers, error, error_size);
    if (*recorder)
        model_context_set_attention(context, trace_writer_attend, *recorder);
    return *recorder != NULL;
}

static int run(const run_options *o, const char *text, size_t length)
{
    char error[512];
    model *m = NULL;
    model_context *context = NULL;
    session_prompt prompt = {0};
    trace_writer *recorder = NULL;
    int status;
    if (!model_options_open(&o->common, &m, &context, error, sizeof(error))) {
        status = fail(EXIT_RUNTIME, error);
    } else if (!session_prompt_create(&prompt, m->tokenizer, text, length, o->question ? o->question : "",
                                      o->question ? strlen(o->question) : 0, error, sizeof(error))) {
        status = fail(EXIT_RUNTIME, error);
    } else if (prompt.prefill.count + prompt.tail.count > m->shape.n_context) {
        snprintf(error, sizeof(error), "the prompt has %zu tokens, more than the model's context of %u",
                 prompt.prefill.count + prompt.tail.count, m->shape.n_context);
        status = fail(EXIT_USAGE, error);
    } else if (!start_recording(o, m, context, &recorder, error, sizeof(error))) {
        status = fail(EXIT_RUNTIME, error);
    } else {
        status = answer(o, context, &prompt);
    }
    if (!trace_writer_finish(recorder, error, sizeof(error)) && status == 0)
        status = fail(EXIT_RUNTIME, error);
    session_prompt_free(&prompt);
    model_context_free(context);
    model_free(m);
    return status;
}

int cmd_run(int argc, char **argv)
{
    static const struct argp_child children[] = {{&model_options_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .doc = "Answer a prompt with a GGUF model of the Llama architecture.\v"
               "The prompt is prefilled densely and indexed; the question and the answer are decoded token by token with "
               "the chosen attention. The answer goes to stdout, a table of times and bytes to stderr.",
        .children = children,
    };
    run_options o = {.record_all = true};
    model_options_init(&o.common);
    if (argp_parse(&argp, argc, argv, 0, NULL, &o) != 0)
        return EXIT_USAGE;

    char error[512];
    char *file = NULL;
    size_t length = o.prompt ? strlen(o.prompt) : 0;
    if (o.prompt_file && !(file = file_read(o.prompt_file, &length, error, sizeof(error))))
        return fail(EXIT_USAGE, error);
    const int status = length == 0 && !(o.question && o.question[0]) ? fail(EXIT_USAGE, "the prompt is empty")
                                                                      : run(&o, file ? file : o.prompt, length);
    free(file);
    return status;
}
