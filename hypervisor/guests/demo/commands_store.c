/* The command for xenstore. */
#include "net.h"

static void failed(void)
{
    print("error: %s\r\n", store_usable() ? store_error() : "there is no xenstore");
}

static void list(const char *path)
{
    static char names[2048];
    int length = store_list(path, names, sizeof names);
    if (length < 0)
        failed();
    for (int at = 0; at < length; at += (int)strlen(names + at) + 1)
        print("%s\r\n", names + at);
}

static void read(const char *path)
{
    static char value[1000];
    if (store_get(value, sizeof value, "%s", path) < 0)
        failed();
    else
        print("value: %s\r\n", value);
}

static void event(struct watch *watch, const char *path)
{
    uint32_t *count = watch->argument;
    print("event: %s\r\n", path);
    console_flush();
    ++*count;
}

static void watch(const char *path, const char *seconds)
{
    uint64_t number = 10;
    uint32_t count = 0;
    struct watch watch = {.path = path, .changed = event, .argument = &count, .each = true};
    if (*seconds && !parse_number(seconds, &number)) {
        print("error: seconds are a number\r\n");
        return;
    }
    if (!watch_add(&watch)) {
        failed();
        return;
    }
    pause_for(number * NANOSECONDS);
    watch_remove(&watch);
    print("events: %u\r\n", count);
}

static void xenstore_command(char *arguments)
{
    char *operation = take_word(&arguments), *path = take_word(&arguments), home[32];
    format(home, sizeof home, "/local/domain/%u", domid);
    if (!strcmp(operation, "ls"))
        list(*path ? path : home);
    else if (!strcmp(operation, "read") && *path)
        read(path);
    else if (!strcmp(operation, "write") && *path)
        store_put(arguments, "%s", path) ? print("done: ok\r\n") : failed();
    else if (!strcmp(operation, "rm") && *path)
        store_remove(path) ? print("done: ok\r\n") : failed();
    else if (!strcmp(operation, "watch") && *path)
        watch(path, take_word(&arguments));
    else
        print_usage(&store_commands[0]);
}

const struct command store_commands[] = {
    {"xenstore", "ls [PATH] | read PATH | write PATH VALUE | rm PATH | watch PATH [SECONDS]", xenstore_command},
    {NULL, NULL, NULL},
};
