/* Classifies images from standard input, each STUDENT_PIXELS bytes: RGB, rows from top to bottom.

       cc -std=c99 -O2 main.c student.c -o student && ./student < pixels.raw

   Prints a line per image: the number of the class, the bits of the logits as hexadecimal numbers, the label. */

#include <stdio.h>
#include <string.h>

#include "student.h"

int main(void)
{
    static uint8_t pixels[STUDENT_PIXELS];
    static float logits[STUDENT_CLASSES];
    int best, i;

    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) {
        best = student_classify(pixels, logits);
        printf("%d", best);
        for (i = 0; i < STUDENT_CLASSES; i++) {
            uint32_t bits;

            memcpy(&bits, &logits[i], sizeof bits);
            printf(" %08lx", (unsigned long)bits);
        }
        printf(" %s\n", student_labels[best]);
    }
    return 0;
}
