/* The shell on the console: lines with backspace, Ctrl-U and Ctrl-C, and the commands of commands_*.c. */
#include "net.h"

enum { LINE = 200, BACKSPACE = 8, CONTROL_U = 21, DELETE = 127 };

static const struct command *const groups[] = {system_commands, disk_commands, net_commands, store_commands};

static bool has_typed(void *character)
{
    *(int *)character = console_read();
    return *(int *)character >= 0 || interrupted;
}

static void erase(uint32_t count)
{
    while (count--)
        print("\b \b");
}

/* Reads a line without its end; an empty one after Ctrl-C. */
static void read_line(char *line)
{
    static bool after_return;
    uint32_t length = 0;
    for (;;) {
        int character;
        wait_for(has_typed, &character, UINT64_MAX);
        if (interrupted) {
            print("^C");
            length = 0;
            break;
        }
        if (character == '\n' && after_return) { /* the second half of one end of line */
            after_return = false;
            continue;
        }
        after_return = character == '\r';
        if (character == '\r' || character == '\n')
            break;
        if ((character == BACKSPACE || character == DELETE) && length) {
            erase(1);
            length--;
        } else if (character == CONTROL_U) {
            erase(length);
            length = 0;
        } else if (character >= ' ' && character < DELETE && length + 1 < LINE) {
            line[length++] = (char)character;
            print("%c", character);
        }
    }
    line[length] = 0;
    print("\r\n");
}

void print_usage(const struct command *command)
{
    print("error: usage: %s %s\r\n", command->name, command->usage);
}

static void help(void)
{
    for (uint32_t group = 0; group < COUNT_OF(groups); group++)
        for (const struct command *command = groups[group]; command->name; command++)
            print("%s %s\r\n", command->name, command->usage);
}

static void run(char *line)
{
    char *name = take_word(&line);
    if (!*name)
        return;
    if (!strcmp(name, "help")) {
        help();
        return;
    }
    for (uint32_t group = 0; group < COUNT_OF(groups); group++)
        for (const struct command *command = groups[group]; command->name; command++)
            if (!strcmp(name, command->name)) {
                command->run(line);
                return;
            }
    print("error: there is no command %s; try help\r\n", name);
}

void shell(void)
{
    static char line[LINE];
    for (;;) {
        print("demo> ");
        interrupted = false;
        read_line(line);
        interrupted = false;
        run(line);
    }
}
