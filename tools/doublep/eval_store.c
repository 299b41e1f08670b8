/* eval_store.c: see eval_store.h. */
#include "eval_store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

#include "eval_case.h"
#include "files.h"

struct eval_store {
    char *folder; /* NULL: nothing is kept */
    char build[17];
    json_t *results; /* key -> {"build": ..., "result": ...}: the last line of a key counts */
    FILE *file;      /* the lines, open for appending */
};

typedef struct rows_header {
    char magic[8];
    uint64_t hash;
    uint32_t n_layers, n_kv_heads, key_dim, value_dim, type, checksum;
    uint64_t n_tokens;
} rows_header;

static const char rows_magic[8] = "DPROWS1";

bool eval_store_hash_file(const char *path, uint64_t *hash, char *error, size_t error_size)
{
    static unsigned char block[1 << 16];
    FILE *const file = fopen(path, "rb");
    *hash = eval_hash_start;
    if (!file) {
        snprintf(error, error_size, "%s: %s", path, strerror(errno));
        return false;
    }
    for (size_t n; (n = fread(block, 1, sizeof(block), file)) > 0;)
        *hash = eval_hash(*hash, block, n);
    const bool done = !ferror(file);
    if (!done)
        snprintf(error, error_size, "%s: %s", path, strerror(errno));
    fclose(file);
    return done;
}

/* ---- Results ------------------------------------------------------------------------------------------------------- */

/* Reads the lines there are. The last may be cut off, where a run was interrupted: the next line must not join it. */
static bool load_lines(eval_store *store, const char *path, char *error, size_t error_size)
{
    size_t length;
    if (access(path, F_OK) != 0)
        return true;
    char *const text = file_read(path, &length, error, error_size);
    if (!text)
        return false;
    for (char *line = text, *end; line < text + length; line = end + 1) {
        end = memchr(line, '\n', (size_t)(text + length - line));
        if (!end)
            break;
        json_t *const o = json_loadb(line, (size_t)(end - line), 0, NULL);
        const char *const key = json_string_value(json_object_get(o, "key"));
        if (key)
            json_object_set(store->results, key, o);
        json_decref(o);
    }
    if (length > 0 && text[length - 1] != '\n')
        fputc('\n', store->file);
    free(text);
    return true;
}

eval_store *eval_store_open(const char *folder, char *error, size_t error_size)
{
    eval_store *const store = calloc(1, sizeof(*store));
    char *path = NULL;
    bool done = store != NULL;
    snprintf(error, error_size, "out of memory");
    if (done && folder) {
        uint64_t hash;
        store->results = json_object();
        store->folder = strdup(folder);
        done = store->folder && store->results && asprintf(&path, "%s/results.jsonl", folder) >= 0 &&
               eval_store_hash_file("/proc/self/exe", &hash, error, error_size);
        if (done && mkdir(folder, 0777) != 0 && errno != EEXIST) {
            snprintf(error, error_size, "%s: %s", folder, strerror(errno));
            done = false;
        }
        if (done) {
            snprintf(store->build, sizeof(store->build), "%016llx", (unsigned long long)hash);
            store->file = fopen(path, "a");
            if (!store->file)
                snprintf(error, error_size, "%s: %s", path, strerror(errno));
            done = store->file && load_lines(store, path, error, error_size);
        }
    }
    free(path);
    if (done)
        return store;
    eval_store_close(store);
    return NULL;
}

void eval_store_close(eval_store *store)
{
    if (!store)
        return;
    if (store->file)
        fclose(store->file);
    json_decref(store->results);
    free(store->folder);
    free(store);
}

bool eval_store_load_result(const eval_store *store, const char *key, bool any_build, eval_result *result)
{
    const json_t *const o = store->folder ? json_object_get(store->results, key) : NULL;
    const char *const build = json_string_value(json_object_get(o, "build"));
    if (!build || (!any_build && strcmp(build, store->build) != 0))
        return false;
    if (eval_result_load(result, json_object_get(o, "result")))
        return true;
    eval_result_free(result);
    return false;
}

bool eval_store_save_result(eval_store *store, const char *key, const eval_result *result, char *error,
                            size_t error_size)
{
    if (!store->folder)
        return true;
    json_t *const o = json_pack("{s:s, s:s, s:o}", "key", key, "build", store->build, "result", eval_result_save(result));
    const bool done = o && json_dumpf(o, store->file, JSON_COMPACT | JSON_REAL_PRECISION(17)) == 0 &&
                      fputc('\n', store->file) != EOF && fflush(store->file) == 0 &&
                      json_object_set(store->results, key, o) == 0;
    if (!done)
        snprintf(error, error_size, "%s/results.jsonl: %s", store->folder, o ? strerror(errno) : "out of memory");
    json_decref(o);
    return done;
}

/* ---- Rows ---------------------------------------------------------------------------------------------------------- */

static char *rows_path(const eval_store *store, uint64_t hash, const char *suffix)
{
    char *path;
    return asprintf(&path, "%s/rows-%016llx.kv%s", store->folder, (unsigned long long)hash, suffix) < 0 ? NULL : path;
}

static rows_header header_of(const method_cache *c, uint64_t hash, uint64_t n_tokens)
{
    rows_header h = {.hash = hash,
                     .n_layers = c->n_layers,
                     .n_kv_heads = c->n_kv_heads,
                     .key_dim = (uint32_t)c->format.key_dim,
                     .value_dim = (uint32_t)c->format.value_dim,
                     .type = (uint32_t)c->format.type,
                     .n_tokens = n_tokens};
    memcpy(h.magic, rows_magic, sizeof(rows_magic));
    return h;
}

/* Calls fn for the keys, then the values, of every head. */
typedef bool (*block_fn)(void *block, size_t bytes, FILE *file, uint32_t *checksum);

static bool each_block(const method_cache *c, uint64_t n_tokens, block_fn fn, FILE *file, uint32_t *checksum)
{
    for (uint32_t l = 0; l < c->n_layers; l++)
        for (uint32_t h = 0; h < c->n_kv_heads; h++)
            if (!fn(method_cache_keys(c, l, h), n_tokens * c->format.key_bytes, file, checksum) ||
                !fn(method_cache_values(c, l, h), n_tokens * c->format.value_bytes, file, checksum))
                return false;
    return true;
}

static bool sum_block(void *block, size_t bytes, FILE *file, uint32_t *checksum)
{
    (void)file;
    *checksum = (uint32_t)crc32_z(*checksum, block, bytes);
    return true;
}

static bool write_block(void *block, size_t bytes, FILE *file, uint32_t *checksum)
{
    (void)checksum;
    return fwrite(block, 1, bytes, file) == bytes;
}

static bool read_block(void *block, size_t bytes, FILE *file, uint32_t *checksum)
{
    return fread(block, 1, bytes, file) == bytes && sum_block(block, bytes, file, checksum);
}

bool eval_store_has_rows(const eval_store *store, uint64_t hash)
{
    char *const path = store->folder ? rows_path(store, hash, "") : NULL;
    const bool has = path && access(path, R_OK) == 0;
    free(path);
    return has;
}

bool eval_store_load_rows(const eval_store *store, uint64_t hash, method_cache *cache)
{
    char *const path = store->folder ? rows_path(store, hash, "") : NULL;
    FILE *const file = path ? fopen(path, "rb") : NULL;
    free(path);
    if (!file)
        return false;
    rows_header h;
    uint32_t checksum = 0;
    bool done = fread(&h, sizeof(h), 1, file) == 1 && h.n_tokens <= cache->capacity;
    if (done) {
        rows_header wanted = header_of(cache, hash, h.n_tokens);
        wanted.checksum = h.checksum;
        done = memcmp(&h, &wanted, sizeof(h)) == 0 && each_block(cache, h.n_tokens, read_block, file, &checksum) &&
               checksum == h.checksum;
    }
    for (uint32_t l = 0; done && l < cache->n_layers; l++)
        cache->n_tokens[l] = h.n_tokens;
    fclose(file);
    return done;
}

bool eval_store_save_rows(const eval_store *store, uint64_t hash, const method_cache *cache, char *error,
                          size_t error_size)
{
    if (!store->folder)
        return true;
    char *const path = rows_path(store, hash, ""), *const temporary = rows_path(store, hash, ".part");
    rows_header h = header_of(cache, hash, cache->n_tokens[0]);
    FILE *const file = path && temporary ? fopen(temporary, "wb") : NULL;
    bool done = file != NULL;
    if (done) {
        each_block(cache, h.n_tokens, sum_block, NULL, &h.checksum);
        done = fwrite(&h, sizeof(h), 1, file) == 1 && each_block(cache, h.n_tokens, write_block, file, NULL);
        done = fclose(file) == 0 && done && rename(temporary, path) == 0;
    }
    if (!done) {
        snprintf(error, error_size, "%s: %s", temporary ? temporary : store->folder, strerror(errno));
        if (file)
            unlink(temporary);
    }
    free(path);
    free(temporary);
    return done;
}
