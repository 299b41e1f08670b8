/* tokenizer_split.c: pre-tokenisation by regular expression (PCRE2). Valid UTF-8 goes to the matcher in runs; it cannot
 * take anything else. Each expression matches at any place of any text, one character at least. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer_split.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Unicode's White_Space, for use inside a class. PCRE2's own \s also has U+180E, which lost that property. */
#define SPACE "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define CONTRACTION "'s|'t|'re|'ve|'m|'ll|'d"

/* Spaces leave their last one to what follows, as " ?\p{L}+" wants it. */
#define GPT2_SPACES "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

struct tokenizer_splitter {
    pcre2_code *code;
    bool ignores_merges, adds_bos;
};

static const struct {
    const char *name, *pattern;
    bool ignores_merges, adds_bos;
} rules[] = {
    {"gpt-2", CONTRACTION "| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+" GPT2_SPACES, false, false},
    /* Digits are cut out one by one before the rest is split as for gpt-2: so no run of spaces looks beyond them. */
    {"smollm",
     "\\p{N}|" CONTRACTION "| ?\\p{L}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "\\p{N}])|[" SPACE "]+", false,
     false},
    {"llama-bpe",
     "(?i:" CONTRACTION ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACE
     "]*[\\r\\n]+" GPT2_SPACES,
     true, true},
};

/* Other names for the same rules. */
static const char *const aliases[][2] = {{"llama-v3", "llama-bpe"}, {"llama3", "llama-bpe"}};

static bool is_name(gguf_string name, const char *wanted)
{
    return name.length == strlen(wanted) && memcmp(name.data, wanted, name.length) == 0;
}

tokenizer_splitter *tokenizer_splitter_create(gguf_string name, char *error, size_t error_size)
{
    gguf_string known = name;
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (is_name(name, aliases[i][0])) known = (gguf_string){aliases[i][1], strlen(aliases[i][1])};
    size_t rule = 0;
    while (rule < sizeof rules / sizeof rules[0] && !is_name(known, rules[rule].name)) rule++;
    if (rule == sizeof rules / sizeof rules[0]) {
        snprintf(error, error_size, "pre-tokeniser '%.*s' is not supported (known: gpt-2, smollm, llama-bpe)",
                 (int)(name.length < 64 ? name.length : 64), name.data);
        return NULL;
    }

    int code = 0;
    PCRE2_SIZE at;
    tokenizer_splitter *splitter = calloc(1, sizeof *splitter);
    if (splitter)
        splitter->code = pcre2_compile((PCRE2_SPTR)rules[rule].pattern, PCRE2_ZERO_TERMINATED,
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &at, NULL);
    if (!splitter || !splitter->code) {
        snprintf(error, error_size, "cannot compile the pre-tokeniser's expression (PCRE2 error %d)", code);
        free(splitter);
        return NULL;
    }
    splitter->ignores_merges = rules[rule].ignores_merges;
    splitter->adds_bos = rules[rule].adds_bos;
    return splitter;
}

void tokenizer_splitter_free(tokenizer_splitter *splitter)
{
    if (!splitter) return;
    pcre2_code_free(splitter->code);
    free(splitter);
}

bool tokenizer_splitter_ignores_merges(const tokenizer_splitter *splitter)
{
    return splitter->ignores_merges;
}

bool tokenizer_splitter_adds_bos(const tokenizer_splitter *splitter)
{
    return splitter->adds_bos;
}

size_t tokenizer_utf8_length(const char *text, size_t length)
{
    const unsigned char *s = (const unsigned char *)text;
    if (length == 0) return 0;
    if (s[0] < 0x80) return 1;
    const size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || length < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    /* Longer than needed, a surrogate, beyond U+10FFFF: the second byte tells. */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

/* Pre-tokens of a run of valid UTF-8. */
static bool split_valid(const tokenizer_splitter *splitter, pcre2_match_data *match, pcre2_match_context *context,
                        const char *text, size_t length, tokenizer_piece_fn receive, void *user, char *error,
                        size_t error_size)
{
    for (size_t at = 0; at < length;) {
        const int code =
            pcre2_match(splitter->code, (PCRE2_SPTR)text, length, at, PCRE2_NO_UTF_CHECK, match, context);
        if (code < 0) {
            snprintf(error, error_size, "the pre-tokeniser's expression failed (PCRE2 error %d)", code);
            return false;
        }
        const size_t end = pcre2_get_ovector_pointer(match)[1];
        if (!receive(user, text + at, end - at)) return false;
        at = end;
    }
    return true;
}

bool tokenizer_split(const tokenizer_splitter *splitter, const char *text, size_t length, tokenizer_piece_fn receive,
                     void *user, char *error, size_t error_size)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(splitter->code, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    bool ok = match && context;
    if (!ok) snprintf(error, error_size, "no memory to split the text");
    /* The default limit guards against expressions from outside; ours go back over a run of spaces at most once. */
    if (context) pcre2_set_match_limit(context, UINT32_MAX);

    for (size_t at = 0; ok && at < length;) {
        size_t end = at, n;
        while ((n = tokenizer_utf8_length(text + end, length - end)) > 0) end += n;
        ok = split_valid(splitter, match, context, text + at, end - at, receive, user, error, error_size);
        at = end;
        while (end < length && tokenizer_utf8_length(text + end, length - end) == 0) end++;
        if (ok && end > at) ok = receive(user, text + at, end - at);
        at = end;
    }
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    return ok;
}
