/* bench.c: `doublep bench`: the decode step of one layer, measured. See bench.h. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "machine.h"
#include "options.h"

static int fail(int status, const char *reason)
{
    fprintf(stderr, "doublep bench: %s\n", reason);
    return status;
}

/* Of the memory that is free, three quarters. */
static uint64_t usable_memory(void)
{
    uint64_t available;
    return dp_system_memory(NULL, &available) == DP_OK ? available / 4 * 3 : UINT64_C(1) << 30;
}

/* The best that the machine showed so far: what shares a machine with others only ever makes it slower. */
bool bench_measure_machine(bench_machine *machine, size_t bytes, const char *flush, size_t flush_bytes)
{
    const int n_threads = machine->info.n_threads;
    const size_t least = 256u << 20, outside = 2 * machine->info.l3_bytes / (size_t)n_threads; /* of the cache */
    bytes = bytes ? bytes : outside > least ? outside : least;
    fputs("measuring the machine's bandwidth\n", stderr);
    const double stream = machine_read_bandwidth(n_threads, bytes) * 1e-9;
    bool done = stream > 0;
    machine->stream_gbps = fmax(machine->stream_gbps, stream);
    for (size_t i = 0; done && i < BENCH_RUN_LENGTHS; i++) {
        const double gather = machine_gather_bandwidth(n_threads, bytes, bench_run_bytes(i), flush, flush_bytes) * 1e-9;
        done = gather > 0;
        machine->gather_gbps[i] = fmax(machine->gather_gbps[i], gather);
    }
    return done;
}

static bool write_json(const json_t *object, const char *path)
{
    FILE *const file = path[0] == '-' && path[1] == '\0' ? stdout : fopen(path, "w");
    if (!file)
        return false;
    bool done = json_dumpf(object, file, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0;
    done = fputc('\n', file) != EOF && done;
    return (file == stdout ? fflush(file) : fclose(file)) == 0 && done;
}

static int write_outputs(const bench_settings *s, const json_t *object)
{
    char error[512];
    if (!object)
        return fail(EXIT_RUNTIME, "out of memory");
    if (s->json && !write_json(object, s->json)) {
        snprintf(error, sizeof(error), "%s cannot be written", s->json);
        return fail(EXIT_RUNTIME, error);
    }
    if (s->svg && !bench_plot(object, s->svg, error, sizeof(error)))
        return fail(EXIT_RUNTIME, error);
    return 0;
}

static int draw_from_file(const bench_settings *s)
{
    json_error_t reason;
    char error[512];
    json_t *const object = json_load_file(s->from, 0, &reason);
    if (!object) {
        snprintf(error, sizeof(error), "%s: %s", s->from, reason.text);
        return fail(EXIT_RUNTIME, error);
    }
    const int status = bench_plot(object, s->svg, error, sizeof(error)) ? 0 : fail(EXIT_RUNTIME, error);
    json_decref(object);
    return status;
}

static int measure(const bench_settings *s, bench_machine *machine, dp_runtime *runtime)
{
    static bench_figures figures[BENCH_CONTEXTS];
    char error[512];
    const bool table = !s->json || s->json[0] != '-' || s->json[1] != '\0';
    if (table)
        bench_print_machine(machine);
    for (size_t i = 0; i < s->n_contexts; i++) {
        if (!bench_run(s, machine, runtime, s->contexts[i], &figures[i], error, sizeof(error)))
            return fail(EXIT_RUNTIME, error);
        if (table)
            bench_print(s, machine, &figures[i]);
    }
    json_t *const object = bench_json(s, machine, figures, s->n_contexts);
    const int status = write_outputs(s, object);
    json_decref(object);
    return status;
}

/* Shape and context, where not given: the first recording's, or the defaults. */
static bool settle_inputs(bench_settings *s, char *error, size_t error_size)
{
    bench_shape shape = {"llama-3.1-8b", 32, 8, 128};
    uint64_t context = 32768;
    if (s->n_traces > 0 && !bench_trace_shape(s->traces[0], &shape, &context, error, error_size))
        return false;
    if (s->shape.n_query_heads == 0)
        s->shape = shape;
    if (s->n_contexts == 0)
        s->contexts[s->n_contexts++] = context;
    return true;
}

int cmd_bench(int argc, char **argv)
{
    bench_settings settings;
    bench_machine machine = {.memory_bytes = usable_memory()};
    dp_runtime *runtime = NULL;
    char error[512];
    bench_options_parse(argc, argv, &settings);
    if (settings.from)
        return draw_from_file(&settings);
    if (!settle_inputs(&settings, error, sizeof(error)))
        return fail(EXIT_RUNTIME, error);
    counters_open(&machine.counters); /* before there are threads that should be counted */

    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = settings.n_threads;
    config.pinning = settings.pinning;
    dp_runtime_info_init(&machine.info);
    dp_status status = dp_runtime_create(&config, &runtime);
    if (status == DP_OK)
        status = dp_runtime_get_info(runtime, &machine.info);
    const int result = status == DP_OK ? measure(&settings, &machine, runtime)
                                       : fail(EXIT_RUNTIME, dp_last_error(NULL, error, sizeof(error)));
    counters_close(&machine.counters);
    eval_methods_free(&settings.methods);
    dp_runtime_free(runtime);
    return result;
}
