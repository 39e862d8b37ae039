/* Strings, numbers and formatted text. */
#include "kernel.h"

void *memcpy(void *to, const void *from, size_t length)
{
    void *start = to;
    size_t words = length / 8, bytes = length % 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
    return start;
}

void *memset(void *to, int value, size_t length)
{
    void *start = to;
    size_t words = length / 8, bytes = length % 8;
    uint64_t pattern = (uint8_t)value * 0x0101010101010101ul;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(pattern) : "memory");
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(pattern) : "memory");
    return start;
}

int memcmp(const void *left, const void *right, size_t length)
{
    const uint8_t *a = left, *b = right;
    for (size_t at = 0; at < length; at++)
        if (a[at] != b[at])
            return a[at] - b[at];
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

int strcmp(const char *left, const char *right)
{
    while (*left && *left == *right)
        left++, right++;
    return (uint8_t)*left - (uint8_t)*right;
}

bool starts_with(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return false;
    return true;
}

/* Reads decimal digits, or hexadecimal ones after 0x, and returns where they end; NULL when there are none. */
static const char *digits(const char *text, uint64_t *number)
{
    uint32_t base = starts_with(text, "0x") ? 16 : 10;
    const char *start = text += base == 16 ? 2 : 0;
    for (*number = 0;; text++) {
        uint32_t digit = base;
        if (*text >= '0' && *text <= '9')
            digit = (uint32_t)(*text - '0');
        else if (*text >= 'a' && *text <= 'f')
            digit = (uint32_t)(*text - 'a' + 10);
        if (digit >= base)
            return text == start ? NULL : text;
        if (*number > (UINT64_MAX - digit) / base)
            return NULL;
        *number = *number * base + digit;
    }
}

bool parse_number(const char *text, uint64_t *number)
{
    const char *end = digits(text, number);
    return end && !*end;
}

/* A number of bytes, with K, M or G for multiples. */
bool parse_size(const char *text, uint64_t *bytes)
{
    const char *end = digits(text, bytes);
    if (!end)
        return false;
    uint32_t shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (*bytes >> (63 - shift))
        return false;
    *bytes <<= shift;
    return !end[shift ? 1 : 0];
}

/* An IPv4 address; what follows it, if anything, must be a slash. */
bool parse_address(const char *text, uint32_t *address)
{
    *address = 0;
    for (int part = 0; part < 4; part++) {
        uint64_t number;
        text = digits(text, &number);
        if (!text || number > 255 || (part < 3 && *text++ != '.'))
            return false;
        *address = *address << 8 | (uint32_t)number;
    }
    return !*text || *text == '/';
}

/* Cuts the next word off; an empty one at the end. */
char *take_word(char **rest)
{
    char *word = *rest;
    while (*word == ' ')
        word++;
    char *end = word;
    while (*end && *end != ' ')
        end++;
    *rest = *end ? end + 1 : end;
    *end = 0;
    return word;
}

struct output {
    char *to;
    size_t size, length;
};

static void put(struct output *output, char character)
{
    if (output->length + 1 < output->size)
        output->to[output->length++] = character;
}

static void put_number(struct output *output, uint64_t number, uint32_t base, bool negative, char fill, uint32_t width)
{
    char text[24];
    uint32_t count = 0;
    do
        text[count++] = "0123456789abcdef"[number % base];
    while (number /= base);
    if (negative)
        text[count++] = '-';
    for (uint32_t filled = count; filled < width; filled++)
        put(output, fill);
    while (count)
        put(output, text[--count]);
}

static uint32_t read_width(const char **format)
{
    uint32_t width = 0;
    for (; **format >= '0' && **format <= '9'; (*format)++)
        width = width * 10 + (uint32_t)(**format - '0');
    return width;
}

/* The subset of printf that is used here: %s %c %d %u %x %%, `l`, a width, and 0 to fill with; cut to `size`. */
int format_list(char *to, size_t size, const char *format, __builtin_va_list values)
{
    struct output output = {to, size, 0};
    for (; *format; format++) {
        if (*format != '%') {
            put(&output, *format);
            continue;
        }
        format++;
        char fill = *format == '0' ? '0' : ' ';
        uint32_t width = read_width(&format);
        bool is_long = *format == 'l';
        format += is_long;
        if (*format == 's') {
            for (const char *text = __builtin_va_arg(values, const char *); *text; text++, width -= width ? 1 : 0)
                put(&output, *text);
            for (; width; width--)
                put(&output, ' ');
        } else if (*format == 'c') {
            put(&output, (char)__builtin_va_arg(values, int));
        } else if (*format == 'd') {
            int64_t number = is_long ? __builtin_va_arg(values, int64_t) : __builtin_va_arg(values, int);
            uint64_t size_of = number < 0 ? -(uint64_t)number : (uint64_t)number;
            put_number(&output, size_of, 10, number < 0, fill, width);
        } else if (*format == 'u' || *format == 'x') {
            uint64_t number = is_long ? __builtin_va_arg(values, uint64_t) : __builtin_va_arg(values, uint32_t);
            put_number(&output, number, *format == 'u' ? 10 : 16, false, fill, width);
        } else {
            put(&output, *format);
        }
    }
    if (size)
        to[output.length] = 0;
    return (int)output.length;
}

int format(char *to, size_t size, const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    int length = format_list(to, size, format, values);
    __builtin_va_end(values);
    return length;
}
