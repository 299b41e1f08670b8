/* tokenizer.c: the tokenizer as a whole: loads the vocabulary and the merges from a GGUF file, cuts special tokens out
 * of a text, and hands the rest to the splitter and, pre-token by pre-token, to the merging. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer_bpe.h"
#include "tokenizer_split.h"

/* Types of tokens, as GGUF numbers them; the others are like normal ones. */
enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4 };

struct tokenizer {
    tokenizer_texts texts; /* what decoding gives: bytes */
    unsigned char *types;
    tokenizer_bpe *bpe; /* of the tokens that are not special */
    tokenizer_splitter *splitter;
    int32_t *specials;          /* control and user-defined tokens, by first byte, then the longest first */
    int32_t special_start[257]; /* those whose first byte is b: special_start[b] .. special_start[b + 1] - 1 */
    bool missing[256];          /* bytes that have no token */
    int32_t bos, eos, eot;
    bool add_bos;
};

bool tokenizer_ids_push(tokenizer_ids *list, int32_t id)
{
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *ids = realloc(list->ids, capacity * sizeof *ids);
        if (!ids) return false;
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->count++] = id;
    return true;
}

void tokenizer_ids_free(tokenizer_ids *list)
{
    free(list->ids);
    *list = (tokenizer_ids){0};
}

static gguf_string text_of(const tokenizer *t, int32_t id)
{
    return (gguf_string){t->texts.bytes + t->texts.offset[id], t->texts.offset[id + 1] - t->texts.offset[id]};
}

static bool is_special(const tokenizer *t, int32_t id)
{
    return t->types[id] == TOKEN_CONTROL || t->types[id] == TOKEN_USER_DEFINED;
}

/* ---- Loading ---- */

/* Byte-level vocabularies spell bytes as characters: printable Latin-1 as itself, and the 68 other bytes, in order, as
 * U+0100 and up. byte_of[character] is the byte, -1 where there is none. */
enum { N_BYTE_CHARACTERS = 256 + 68 };

static void spell_bytes(int16_t byte_of[N_BYTE_CHARACTERS])
{
    memset(byte_of, 0xff, N_BYTE_CHARACTERS * sizeof *byte_of);
    int16_t next = 256;
    for (int16_t byte = 0; byte < 256; byte++) {
        const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        byte_of[printable ? byte : next++] = byte;
    }
}

/* The bytes that a token's text spells; dst has room for text.length. False where a character spells none. */
static bool unspell(const int16_t byte_of[N_BYTE_CHARACTERS], gguf_string text, char *dst, size_t *length)
{
    *length = 0;
    for (size_t at = 0; at < text.length;) {
        const size_t n = tokenizer_utf8_length(text.data + at, text.length - at);
        const unsigned char *s = (const unsigned char *)text.data + at;
        const unsigned character = n == 1 ? s[0] : n == 2 ? (s[0] & 31u) << 6 | (s[1] & 63u) : N_BYTE_CHARACTERS;
        if (character >= N_BYTE_CHARACTERS || byte_of[character] < 0) return false;
        dst[(*length)++] = (char)byte_of[character];
        at += n;
    }
    return true;
}

static bool load_types(tokenizer *t, const gguf_file *file, char *error, size_t error_size)
{
    static const char key[] = "tokenizer.ggml.token_type";
    memset(t->types, TOKEN_NORMAL, (size_t)t->texts.count);
    if (!gguf_find(file, key)) {
        const int32_t control[] = {t->bos, t->eos, t->eot};
        for (size_t i = 0; i < 3; i++)
            if (control[i] >= 0) t->types[control[i]] = TOKEN_CONTROL;
        return true;
    }
    gguf_array types;
    if (!gguf_get_ints(file, key, &types, error, error_size)) return false;
    if (types.count != (uint64_t)t->texts.count) {
        snprintf(error, error_size, "%s: %s has %llu elements, but there are %d tokens", gguf_path(file), key,
                 (unsigned long long)types.count, t->texts.count);
        return false;
    }
    for (int32_t i = 0; i < t->texts.count; i++) {
        const int64_t type = gguf_array_int(&types, (uint64_t)i);
        if (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED) t->types[i] = (unsigned char)type;
    }
    return true;
}

static bool load_id(const tokenizer *t, const gguf_file *file, const char *key, int32_t *id, char *error,
                    size_t error_size)
{
    uint64_t value;
    *id = -1;
    if (!gguf_find(file, key)) return true;
    if (!gguf_get_u64(file, key, 0, (uint64_t)t->texts.count - 1, &value, error, error_size)) return false;
    *id = (int32_t)value;
    return true;
}

static bool load_tokens(tokenizer *t, const gguf_file *file, const int16_t byte_of[N_BYTE_CHARACTERS], char *error,
                        size_t error_size)
{
    gguf_array tokens;
    gguf_string text;
    if (!gguf_get_strings(file, "tokenizer.ggml.tokens", &tokens, error, error_size)) return false;
    if (tokens.count == 0 || tokens.count > INT32_MAX / 4) {
        snprintf(error, error_size, "%s: a vocabulary of %llu tokens", gguf_path(file),
                 (unsigned long long)tokens.count);
        return false;
    }
    size_t bytes = 0;
    for (gguf_array rest = tokens; gguf_array_next_string(&rest, &text);) bytes += text.length;
    t->texts.count = (int32_t)tokens.count;
    t->texts.bytes = malloc(bytes + 1);
    t->texts.offset = malloc((tokens.count + 1) * sizeof *t->texts.offset);
    t->types = malloc(tokens.count);
    t->specials = malloc(tokens.count * sizeof *t->specials);
    if (!t->texts.bytes || !t->texts.offset || !t->types || !t->specials) {
        snprintf(error, error_size, "%s: no memory for the vocabulary", gguf_path(file));
        return false;
    }
    if (!load_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos, error, error_size) ||
        !load_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos, error, error_size) ||
        !load_id(t, file, "tokenizer.ggml.eot_token_id", &t->eot, error, error_size) ||
        !load_types(t, file, error, error_size))
        return false;

    t->texts.offset[0] = 0;
    for (int32_t i = 0; i < t->texts.count; i++) {
        char *dst = t->texts.bytes + t->texts.offset[i];
        size_t length;
        gguf_array_next_string(&tokens, &text);
        /* Special tokens are literal text; so is what spells no bytes, such as fillers of a vocabulary. */
        if (is_special(t, i) || !unspell(byte_of, text, dst, &length)) {
            if (text.length) memcpy(dst, text.data, text.length);
            length = text.length;
            if (t->types[i] == TOKEN_NORMAL) t->types[i] = 0;
        }
        t->texts.offset[i + 1] = t->texts.offset[i] + length;
    }
    return true;
}

/* A merge is "left right": two spelt pieces. Both, and what they make together, must be tokens. */
static bool load_merge(tokenizer *t, const int16_t byte_of[N_BYTE_CHARACTERS], gguf_string merge, char *buffer)
{
    const char *space = merge.length ? memchr(merge.data, ' ', merge.length) : NULL;
    if (!space) return false;
    const size_t left_length = (size_t)(space - merge.data);
    size_t left_bytes, right_bytes;
    if (!unspell(byte_of, (gguf_string){merge.data, left_length}, buffer, &left_bytes) ||
        !unspell(byte_of, (gguf_string){space + 1, merge.length - left_length - 1}, buffer + left_bytes,
                 &right_bytes) ||
        left_bytes == 0 || right_bytes == 0)
        return false;
    const int32_t left = tokenizer_bpe_find(t->bpe, buffer, left_bytes),
                  right = tokenizer_bpe_find(t->bpe, buffer + left_bytes, right_bytes),
                  merged = tokenizer_bpe_find(t->bpe, buffer, left_bytes + right_bytes);
    if (left < 0 || right < 0 || merged < 0) return false;
    tokenizer_bpe_add_merge(t->bpe, left, right, merged);
    return true;
}

static bool load_merges(tokenizer *t, const gguf_file *file, const int16_t byte_of[N_BYTE_CHARACTERS], char *error,
                        size_t error_size)
{
    gguf_array merges;
    gguf_string merge;
    if (!gguf_get_strings(file, "tokenizer.ggml.merges", &merges, error, error_size)) return false;
    size_t longest = 0;
    for (gguf_array rest = merges; gguf_array_next_string(&rest, &merge);)
        if (merge.length > longest) longest = merge.length;
    char *buffer = malloc(longest + 1);
    if (merges.count <= INT32_MAX / 4) t->bpe = tokenizer_bpe_create(&t->texts, merges.count);
    bool ok = buffer && t->bpe;
    if (!ok)
        snprintf(error, error_size, "%s: no memory for %llu merges", gguf_path(file),
                 (unsigned long long)merges.count);
    for (int32_t i = 0; ok && i < t->texts.count; i++)
        if (t->types[i] == TOKEN_NORMAL && text_of(t, i).length) tokenizer_bpe_add_piece(t->bpe, i);
    for (uint64_t i = 0; ok && gguf_array_next_string(&merges, &merge); i++) {
        ok = load_merge(t, byte_of, merge, buffer);
        if (!ok)
            snprintf(error, error_size,
                     "%s: merge %llu is not two pieces that are tokens and make a token together", gguf_path(file),
                     (unsigned long long)i);
    }
    for (int byte = 0; ok && byte < 256; byte++)
        t->missing[byte] = tokenizer_bpe_find(t->bpe, &(char){(char)byte}, 1) < 0;
    free(buffer);
    return ok;
}

static int compare_specials(const void *a, const void *b, void *user)
{
    const int32_t id_a = *(const int32_t *)a, id_b = *(const int32_t *)b;
    const gguf_string x = text_of(user, id_a), y = text_of(user, id_b);
    const unsigned char first_x = (unsigned char)x.data[0], first_y = (unsigned char)y.data[0];
    if (first_x != first_y) return first_x < first_y ? -1 : 1;
    if (x.length != y.length) return x.length > y.length ? -1 : 1;
    return (id_a > id_b) - (id_a < id_b);
}

static void load_specials(tokenizer *t)
{
    size_t n = 0;
    for (int32_t i = 0; i < t->texts.count; i++)
        if (is_special(t, i) && text_of(t, i).length) t->specials[n++] = i;
    qsort_r(t->specials, n, sizeof *t->specials, compare_specials, t);
    for (size_t i = 0; i < n; i++) t->special_start[(unsigned char)text_of(t, t->specials[i]).data[0] + 1]++;
    for (size_t i = 0; i < 256; i++) t->special_start[i + 1] += t->special_start[i];
}

/* A chat model's end of turn, where the file does not say: the control token that is spelt like one. */
static int32_t find_eot(const tokenizer *t)
{
    static const char *const names[] = {"<|eot_id|>", "<|im_end|>"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++)
        for (int32_t i = 0; i < t->texts.count; i++)
            if (t->types[i] == TOKEN_CONTROL && text_of(t, i).length == strlen(names[n]) &&
                memcmp(text_of(t, i).data, names[n], strlen(names[n])) == 0)
                return i;
    return -1;
}

static bool load(tokenizer *t, const gguf_file *file, char *error, size_t error_size)
{
    gguf_string model, pre;
    if (!gguf_get_string(file, "tokenizer.ggml.model", &model, error, error_size) ||
        !gguf_get_string(file, "tokenizer.ggml.pre", &pre, error, error_size))
        return false;
    if (model.length != 4 || memcmp(model.data, "gpt2", 4) != 0) {
        snprintf(error, error_size, "%s: tokenizer '%.*s' is not supported (only gpt2, byte-level BPE)",
                 gguf_path(file), (int)(model.length < 64 ? model.length : 64), model.data);
        return false;
    }
    char why[200] = "";
    t->splitter = tokenizer_splitter_create(pre, why, sizeof why);
    if (!t->splitter) {
        snprintf(error, error_size, "%s: %s", gguf_path(file), why);
        return false;
    }
    int16_t byte_of[N_BYTE_CHARACTERS];
    spell_bytes(byte_of);
    if (!load_tokens(t, file, byte_of, error, error_size) || !load_merges(t, file, byte_of, error, error_size))
        return false;
    load_specials(t);
    if (t->eot < 0) t->eot = find_eot(t);
    t->add_bos = tokenizer_splitter_adds_bos(t->splitter);
    static const char key[] = "tokenizer.ggml.add_bos_token";
    if (gguf_find(file, key) && !gguf_get_bool(file, key, &t->add_bos, error, error_size)) return false;
    t->add_bos = t->add_bos && t->bos >= 0;
    return true;
}

tokenizer *tokenizer_create(const gguf_file *file, char *error, size_t error_size)
{
    tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(error, error_size, "%s: no memory for the tokenizer", gguf_path(file));
    } else if (!load(t, file, error, error_size)) {
        tokenizer_free(t);
        t = NULL;
    }
    return t;
}

void tokenizer_free(tokenizer *t)
{
    if (!t) return;
    tokenizer_bpe_free(t->bpe);
    tokenizer_splitter_free(t->splitter);
    free(t->texts.bytes);
    free(t->texts.offset);
    free(t->types);
    free(t->specials);
    free(t);
}

/* ---- Encoding ---- */

typedef struct encoder {
    const tokenizer *t;
    tokenizer_scratch scratch;
    tokenizer_ids *out;
    char *error;
    size_t error_size;
} encoder;

static bool encode_piece(void *user, const char *text, size_t length)
{
    encoder *e = user;
    const tokenizer *t = e->t;
    for (size_t i = 0; i < length; i++) {
        if (t->missing[(unsigned char)text[i]]) {
            snprintf(e->error, e->error_size, "byte 0x%02x has no token in the vocabulary", (unsigned char)text[i]);
            return false;
        }
    }
    const int32_t whole =
        tokenizer_splitter_ignores_merges(t->splitter) ? tokenizer_bpe_find(t->bpe, text, length) : -1;
    const bool ok = whole >= 0 ? tokenizer_ids_push(e->out, whole)
                               : tokenizer_bpe_encode(t->bpe, text, length, &e->scratch, e->out);
    if (!ok) snprintf(e->error, e->error_size, "no memory for the tokens");
    return ok;
}

/* The special token that text starts with, the longest one; -1 where there is none. */
static int32_t special_at(const tokenizer *t, const char *text, size_t length, bool parse_control)
{
    const unsigned char first = (unsigned char)text[0];
    for (int32_t i = t->special_start[first]; i < t->special_start[first + 1]; i++) {
        const int32_t id = t->specials[i];
        const gguf_string special = text_of(t, id);
        if (t->types[id] == TOKEN_CONTROL && !parse_control) continue;
        if (special.length <= length && memcmp(special.data, text, special.length) == 0) return id;
    }
    return -1;
}

bool tokenizer_encode(const tokenizer *t, const char *text, size_t length, bool parse_special, tokenizer_ids *out,
                      char *error, size_t error_size)
{
    if (length > INT32_MAX) {
        snprintf(error, error_size, "a text of %zu bytes is longer than 2 GiB", length);
        return false;
    }
    encoder e = {t, {0}, out, error, error_size};
    const size_t count = out->count;
    bool ok = true;
    for (size_t start = 0; ok && start < length;) {
        int32_t special = -1;
        size_t end = start;
        while (end < length && (special = special_at(t, text + end, length - end, parse_special)) < 0) end++;
        ok = tokenizer_split(t->splitter, text + start, end - start, encode_piece, &e, error, error_size);
        start = end;
        if (ok && special >= 0) {
            start += text_of(t, special).length;
            ok = tokenizer_ids_push(out, special);
            if (!ok) snprintf(error, error_size, "no memory for the tokens");
        }
    }
    if (!ok) out->count = count;
    tokenizer_scratch_free(&e.scratch);
    return ok;
}

/* ---- Questions ---- */

const char *tokenizer_decode(const tokenizer *t, int32_t id, size_t *length)
{
    *length = 0;
    if (id < 0 || id >= t->texts.count) return NULL;
    *length = text_of(t, id).length;
    return text_of(t, id).data;
}

bool tokenizer_is_control(const tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->texts.count && t->types[id] == TOKEN_CONTROL;
}

int32_t tokenizer_vocab_size(const tokenizer *t)
{
    return t->texts.count;
}

int32_t tokenizer_bos(const tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const tokenizer *t)
{
    return t->eos;
}

int32_t tokenizer_eot(const tokenizer *t)
{
    return t->eot;
}

bool tokenizer_add_bos(const tokenizer *t)
{
    return t->add_bos;
}
