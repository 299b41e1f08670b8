/* llama.c: the command `doublep llama`: starts a program of llama.cpp's with the ggml plugin in place. Programs whose
 * backends are built in take the plugin when it is preloaded; programs that load their backends find it in
 * GGML_BACKEND_PATH. */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "options.h"

#define PLUGIN "libggml-doublep.so"

typedef struct llama_options {
    const char *plugin;
    char **program; /* and its arguments */
} llama_options;

enum { KEY_PLUGIN = 256 };

static const struct argp_option options_list[] = {
    {"plugin", KEY_PLUGIN, "FILE", 0, "The plugin, where it is not found: beside the command's library or in the build folder", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    llama_options *const o = state->input;
    switch (key) {
    case KEY_PLUGIN:
        o->plugin = arg;
        return 0;
    case ARGP_KEY_ARG: /* the first: all that follows is the program's */
        o->program = &state->argv[state->next - 1];
        state->next = state->argc;
        return 0;
    case ARGP_KEY_END:
        if (!o->program)
            argp_error(state, "a program is missing, as in: doublep llama -- llama-server -m MODEL.gguf");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The folder of a file, as an absolute path; false where there is no such file. */
static bool folder_of(const char *file, char folder[PATH_MAX])
{
    char path[PATH_MAX];
    if (!realpath(file, path))
        return false;
    snprintf(folder, PATH_MAX, "%s", dirname(path));
    return true;
}

/* Where the plugin is: as given, in the build folder that the command runs from, or where it was installed. */
static bool find_plugin(const char *given, char path[PATH_MAX])
{
    char folder[PATH_MAX], file[2 * PATH_MAX];
    if (given)
        return realpath(given, path) != NULL;
    if (folder_of("/proc/self/exe", folder)) {
        snprintf(file, sizeof(file), "%s/../src/llamacpp/" PLUGIN, folder);
        if (realpath(file, path))
            return true;
    }
    return realpath(DP_LIBDIR "/" PLUGIN, path) != NULL;
}

/* The program as execvp will find it. */
static bool find_program(const char *name, char path[PATH_MAX])
{
    if (strchr(name, '/'))
        return realpath(name, path) != NULL;
    const char *const search = getenv("PATH");
    char *const folders = strdup(search ? search : "/usr/local/bin:/usr/bin:/bin"), *rest = folders;
    bool found = false;
    for (const char *folder; folders && !found && (folder = strsep(&rest, ":"));) {
        char file[2 * PATH_MAX];
        snprintf(file, sizeof(file), "%s/%s", *folder ? folder : ".", name);
        found = access(file, X_OK) == 0 && realpath(file, path);
    }
    free(folders);
    return found;
}

/* Whether a file is a program or a library and has a text in it. */
static bool elf_has(const char *path, const char *text)
{
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (file < 0)
        return false;
    const size_t size = fstat(file, &stat) == 0 ? (size_t)stat.st_size : 0;
    const char *const bytes = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    if (bytes == MAP_FAILED)
        return false;
    const bool found = size > 4 && memcmp(bytes, "\177ELF", 4) == 0 && memmem(bytes, size, text, strlen(text));
    munmap((void *)bytes, size);
    return found;
}

/* ggml is linked into the program itself: its backends' functions are out of a plugin's reach. A text that only ggml has
 * tells; scripts that name the variable have it, too. */
static bool has_ggml_inside(const char *program)
{
    return elf_has(program, "GGML_BACKEND_PATH");
}

/* Puts a value in front of what a variable that lists paths has. */
static bool put_in_front(const char *variable, const char *value)
{
    const char *const old = getenv(variable);
    char *text = NULL;
    if (asprintf(&text, "%s%s%s", value, old && *old ? ":" : "", old ? old : "") < 0)
        return false;
    const bool ok = setenv(variable, text, 1) == 0;
    free(text);
    return ok;
}

/* The program's own copy of ggml lies beside it where it was built; the plugin must meet the same one. */
static bool use_libraries_of(const char *program)
{
    static const char *const places[] = {"", "/../lib"};
    char folder[PATH_MAX];
    if (!folder_of(program, folder))
        return false;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char library[2 * PATH_MAX];
        snprintf(library, sizeof(library), "%s%s/libggml-base.so", folder, places[i]);
        if (access(library, R_OK) != 0)
            continue;
        *strrchr(library, '/') = '\0';
        return put_in_front("LD_LIBRARY_PATH", library);
    }
    return true; /* it is where the system finds it */
}

int cmd_llama(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options_list,
        .parser = parse,
        .args_doc = "[--] PROGRAM [ARGUMENT...]",
        .doc = "Start a program of llama.cpp's (llama-server, llama-cli, llama-bench, ...) that decodes with Double-P "
               "attention. The environment variables DOUBLEP_EPSILON, DOUBLEP_MIN_CONTEXT, DOUBLEP_DENSE_LAYERS, "
               "DOUBLEP_KV, DOUBLEP_MEMORY, DOUBLEP_STATS, DOUBLEP_ISA and DOUBLEP set it up; see doublep(1).",
    };
    llama_options o = {0};
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &o) != 0)
        return EXIT_USAGE;

    char plugin[PATH_MAX], program[PATH_MAX];
    if (!find_plugin(o.plugin, plugin)) {
        fprintf(stderr,
                o.plugin ? "doublep llama: there is no plugin %s\n"
                         : "doublep llama: %s is neither installed nor built; it is built for one version of "
                           "llama.cpp, with meson's option -Dllama_cpp=FOLDER\n",
                o.plugin ? o.plugin : PLUGIN);
        return EXIT_RUNTIME;
    }
    if (!elf_has(plugin, "ggml_backend_init")) { /* a preloaded library that is none would be passed over */
        fprintf(stderr, "doublep llama: %s is no backend of ggml\n", plugin);
        return EXIT_RUNTIME;
    }
    if (!find_program(o.program[0], program)) {
        fprintf(stderr, "doublep llama: there is no program %s\n", o.program[0]);
        return EXIT_RUNTIME;
    }
    if (has_ggml_inside(program)) {
        fprintf(stderr,
                "doublep llama: %s has ggml linked into it and can take no plugin; build llama.cpp with "
                "-DBUILD_SHARED_LIBS=ON\n",
                program);
        return EXIT_RUNTIME;
    }
    if (!use_libraries_of(program) || !put_in_front("LD_PRELOAD", plugin) ||
        setenv("GGML_BACKEND_PATH", plugin, 1) != 0) {
        fprintf(stderr, "doublep llama: %s\n", strerror(errno));
        return EXIT_RUNTIME;
    }
    execv(program, o.program);
    fprintf(stderr, "doublep llama: %s: %s\n", program, strerror(errno));
    return EXIT_RUNTIME;
}
