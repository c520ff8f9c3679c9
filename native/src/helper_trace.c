/*
 * bpf_trace_printk and bpf_trace_vprintk: kernel/bpf/helpers.c bpf_bprintf_prepare says which formats
 * are valid, lib/vsprintf.c how they look. The text goes into the trace ring buffer as a struct ub_trace.
 * A line is cut at UB_TRACE_TEXT bytes (the kernel's limit is 1024; this is on the observed thread's stack).
 */
#include "helper.h"
#include "map_ringbuf.h"

#define UB_TRACE_TEXT 512
#define MAX_ARGS 12 /* MAX_BPRINTF_VARARGS */

struct text {
    char buf[UB_TRACE_TEXT];
    uint32_t len; /* as if there were room for all: what snprintf returns */
};

/* One conversion: %[flags][width][l|ll]letter */
struct spec {
    uint32_t width;
    uint8_t left, zero, plus, space;
    uint8_t size; /* bytes of the integer: 4 or 8 */
    char letter;
};

static void put(struct text *t, char c)
{
    if (t->len < UB_TRACE_TEXT)
        ((volatile char *)t->buf)[t->len] = c;
    t->len++;
}

static void put_padded(struct text *t, const struct spec *s, const char *from, uint32_t n, char sign)
{
    uint32_t total = n + (sign != 0), pad = s->width > total ? s->width - total : 0;

    for (; pad && !s->left && !s->zero; pad--)
        put(t, ' ');
    if (sign)
        put(t, sign);
    for (; pad && !s->left; pad--)
        put(t, '0');
    for (uint32_t i = 0; i < n; i++)
        put(t, from[i]);
    for (; pad; pad--)
        put(t, ' ');
}

static void put_number(struct text *t, const struct spec *s, uint64_t v)
{
    char digits[20], sign = 0;
    uint32_t n = 0, base = s->letter == 'x' || s->letter == 'X' ? 16 : 10;
    char ten = s->letter == 'X' ? 'A' : 'a';

    if (s->size == 4)
        v = s->letter == 'd' ? (uint64_t)(int64_t)(int32_t)v : (uint32_t)v;
    if (s->letter == 'd') {
        sign = s->plus ? '+' : s->space ? ' ' : 0;
        if ((int64_t)v < 0) {
            sign = '-';
            v = -v;
        }
    }
    do {
        uint32_t d = (uint32_t)(v % base);
        ((volatile char *)digits)[sizeof digits - ++n] = (char)(d < 10 ? '0' + d : ten + d - 10);
        v /= base;
    } while (v);
    put_padded(t, s, digits + sizeof digits - n, n, sign);
}

static void put_pointer(struct text *t, const struct spec *s, uint64_t v)
{
    struct spec hex = {.width = s->width > 16 ? s->width : 16, .zero = 1, .size = 8, .letter = 'x'};
    put_number(t, &hex, v);
}

static void put_string(struct text *t, const struct spec *s, uint64_t from)
{
    char str[UB_TRACE_TEXT];
    int64_t n = ub_env.strncpy_from_user(str, (const void *)from, sizeof str);
    struct spec plain = {.width = s->width, .left = s->left};

    if (n > 0) /* an unreadable string prints as nothing, as in the kernel */
        put_padded(t, &plain, str, (uint32_t)n - 1, 0);
}

static int is_punct_or_space_or_end(char c)
{
    return c <= '/' || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || c >= '{';
}

/* Parses one conversion behind its '%'. Returns the position behind it, 0 when the kernel refuses it. */
static uint32_t parse(const char *fmt, uint32_t i, struct spec *s)
{
    *s = (struct spec){.size = 4};
    for (;; i++) {
        if (fmt[i] == '0')
            s->zero = 1;
        else if (fmt[i] == '+')
            s->plus = 1;
        else if (fmt[i] == '-')
            s->left = 1;
        else if (fmt[i] == ' ')
            s->space = 1;
        else
            break;
    }
    if (fmt[i] >= '1' && fmt[i] <= '9')
        for (; fmt[i] >= '0' && fmt[i] <= '9'; i++)
            s->width = s->width * 10 + (uint32_t)(fmt[i] - '0');
    s->width = ub_min(s->width, (uint32_t)UB_TRACE_TEXT);
    if (fmt[i] == 'p') {
        s->letter = 'p';
        i++;
        if ((fmt[i] == 'k' || fmt[i] == 'u') && fmt[i + 1] == 's') {
            s->letter = 's';
            return i + 2;
        }
        if (fmt[i] == 'x' || fmt[i] == 'K' || fmt[i] == 's' || fmt[i] == 'S')
            return i + 1;
        return is_punct_or_space_or_end(fmt[i]) ? i : 0;
    }
    if (fmt[i] == 's' || fmt[i] == 'c') {
        s->letter = fmt[i];
        return i + 1;
    }
    for (uint32_t l = 0; l < 2 && fmt[i] == 'l'; l++, i++)
        s->size = 8;
    if (fmt[i] == 'i' || fmt[i] == 'd')
        s->letter = 'd';
    else if (fmt[i] == 'u' || fmt[i] == 'x' || fmt[i] == 'X')
        s->letter = fmt[i];
    else
        return 0;
    return i + 1;
}

/* `fmt` ends with a NUL. 0 or -EINVAL. */
static int format(struct text *t, const char *fmt, const uint64_t *args, uint32_t n_args)
{
    uint32_t used = 0;

    for (uint32_t i = 0; fmt[i];) {
        struct spec s;
        char c = fmt[i++];

        if ((c < ' ' && !(c >= '\t' && c <= '\r')) || c > '~')
            return -UB_EINVAL;
        if (c != '%') {
            put(t, c);
            continue;
        }
        if (fmt[i] == '%') {
            put(t, '%');
            i++;
            continue;
        }
        i = parse(fmt, i, &s);
        if (i == 0 || used == n_args)
            return -UB_EINVAL;
        if (s.letter == 's') {
            put_string(t, &s, args[used++]);
        } else if (s.letter == 'p') {
            put_pointer(t, &s, args[used++]);
        } else if (s.letter == 'c') {
            char one = (char)args[used++];
            s.zero = 0;
            put_padded(t, &s, &one, 1, 0);
        } else {
            put_number(t, &s, args[used++]);
        }
    }
    return 0;
}

static uint64_t trace(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const char *fmt,
                      uint64_t fmt_size, const uint64_t *args, uint32_t n_args)
{
    struct text text;
    struct ub_trace *record;
    int err;

    fmt_size = (uint32_t)fmt_size;
    if (fmt_size == 0 || fmt[fmt_size - 1] != 0)
        return ub_error(UB_EINVAL);
    text.len = 0;
    err = format(&text, fmt, args, n_args);
    if (err)
        return (uint64_t)(int64_t)err;
    text.len = ub_min(text.len, (uint32_t)UB_TRACE_TEXT);
    record = ub_ringbuf_reserve(run, def, base, sizeof *record + text.len);
    if (record) { /* a full trace buffer loses lines, counted in the header, as the kernel's does */
        record->ktime = ub_clock(1);
        record->pid = ub_current_tgid();
        record->tid = ub_current_tid(run);
        record->cpu = run->cpu;
        record->len = text.len;
        ub_helper_get_current_comm(run, record->comm, sizeof record->comm);
        ub_copy_in(record + 1, text.buf, text.len);
        ub_ringbuf_commit(run, base, record, 0, 0);
    }
    return text.len;
}

UB_OUTLINE uint64_t ub_helper_trace_printk(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                           const char *fmt, uint64_t fmt_size, uint64_t a1, uint64_t a2, uint64_t a3)
{
    uint64_t args[3] = {a1, a2, a3};
    return trace(run, def, base, fmt, fmt_size, args, 3);
}

UB_OUTLINE uint64_t ub_helper_trace_vprintk(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                            const char *fmt, uint64_t fmt_size, const void *data, uint64_t data_len)
{
    data_len = (uint32_t)data_len;
    if (data_len & 7 || data_len > MAX_ARGS * 8 || (data_len && !data))
        return ub_error(UB_EINVAL);
    return trace(run, def, base, fmt, fmt_size, data, (uint32_t)data_len / 8);
}
