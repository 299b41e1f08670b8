/* eval_store.h: what an evaluation keeps in a folder between runs: the rows of prefilled prompts, and results.
 *
 * rows-HASH.kv: keys and values of one prompt, with its hash and a checksum. results.jsonl: a line per prompt and method.
 * Both may be deleted at any time. A store without a folder keeps nothing. */
#ifndef DOUBLEP_TOOL_EVAL_STORE_H
#define DOUBLEP_TOOL_EVAL_STORE_H

#include "cache.h"
#include "eval_result.h"

typedef struct eval_store eval_store;

/* folder: made where it is missing; NULL: nothing is kept. NULL and a message on failure. */
eval_store *eval_store_open(const char *folder, char *error, size_t error_size);
void eval_store_close(eval_store *store); /* NULL is allowed */

/* Reads rows over those in the cache; false where there are none, or they are damaged (then the cache holds anything) or of
 * another shape. */
bool eval_store_has_rows(const eval_store *store, uint64_t hash);
bool eval_store_load_rows(const eval_store *store, uint64_t hash, method_cache *cache);

/* Keeps a cache's rows; false and a message where they cannot be written. */
bool eval_store_save_rows(const eval_store *store, uint64_t hash, const method_cache *cache, char *error,
                          size_t error_size);

/* The result that has this key; only one of this very build of the command unless any_build. */
bool eval_store_load_result(const eval_store *store, const char *key, bool any_build, eval_result *result);
bool eval_store_save_result(eval_store *store, const char *key, const eval_result *result, char *error,
                            size_t error_size);

/* Hash of a file's bytes; false and a message where it cannot be read. */
bool eval_store_hash_file(const char *path, uint64_t *hash, char *error, size_t error_size);

#endif
