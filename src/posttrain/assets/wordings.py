"""How every kind of problem is said: as an instruction, as a textbook exercise, as a plain
statement.

The three lines under a kind are its instructions (fine-tuning and evaluation), its exercises and
its statements (pretraining), separated by bars. No instruction is also an exercise: the base model
meets the task, never the instruction.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Wording(NamedTuple):
    """Templates with the slots of their kind, and {answer} in statements."""

    instructions: tuple[str, ...]
    exercises: tuple[str, ...]
    statements: tuple[str, ...]


_TEXT = r"""
plus
Please add {a} and {b}. | How much is {a} plus {b}? | Tell me the sum of {a} and {b}.
| I have {a} and get {b} more. How much is that? | Can you work out {a} + {b}?
{a} + {b} = ? | {a} plus {b} | Find the sum: {a} + {b}
{a} plus {b} is {answer}. | {a} + {b} = {answer} | The sum of {a} and {b} is {answer}.
plus3
Please add {a}, {b} and {c}. | How much is {a} plus {b} plus {c}? | Tell me the sum of {a}, {b} and {c}.
| Can you work out {a} + {b} + {c}?
{a} + {b} + {c} = ? | Find the sum: {a} + {b} + {c}
{a} plus {b} plus {c} is {answer}. | {a} + {b} + {c} = {answer}
minus
Please take {b} away from {a}. | How much is {a} minus {b}? | What is left of {a} when I remove {b}?
| Tell me the difference of {a} and {b}. | Can you work out {a} - {b}?
{a} - {b} = ? | {a} minus {b} | Find the difference: {a} - {b}
{a} minus {b} is {answer}. | {a} - {b} = {answer} | Taking {b} from {a} leaves {answer}.
times
Please multiply {a} by {b}. | How much is {a} times {b}? | Tell me the product of {a} and {b}. | Can you work out {a} * {b}?
{a} * {b} = ? | {a} times {b} | Find the product: {a} x {b}
{a} times {b} is {answer}. | {a} * {b} = {answer} | The product of {a} and {b} is {answer}.
largest
Which number is the largest: {list}? | Please give me the biggest of the numbers {list}.
| I have {list}. Which one is the greatest? | Pick the highest number from {list}.
Largest of {list} | Of {list} the largest number is which?
Of {list} the largest is {answer}. | Among {list}, no number is larger than {answer}.
smallest
Which number is the smallest: {list}? | Please give me the least of the numbers {list}. | I have {list}. Which one is the lowest?
| Pick the smallest number from {list}.
Smallest of {list} | Of {list} the smallest number is which?
Of {list} the smallest is {answer}. | Among {list}, no number is smaller than {answer}.
second-largest
Which number is the second largest: {list}? | Please give me the second biggest of {list}.
| Only one number of {list} is larger than the one I want. Which is it?
Second largest of {list} | Of {list} the second largest is which?
Of {list} the second largest is {answer}. | Second in size among {list} is {answer}.
second-smallest
Which number is the second smallest: {list}? | Please give me the second lowest of {list}.
| Only one number of {list} is smaller than the one I want. Which is it?
Second smallest of {list} | Of {list} the second smallest is which?
Of {list} the second smallest is {answer}. | The smallest but one among {list} is {answer}.
range
How far apart are the largest and the smallest of {list}? | Please subtract the smallest of {list} from the largest.
| Tell me the range of the numbers {list}.
Largest minus smallest of {list} | The range of {list} is what?
The range of {list} is {answer}. | From the smallest to the largest of {list} it is {answer}.
sort-up
Please sort these numbers: {list} | Put {list} in order, the smallest first. | Can you arrange {list} from low to high?
| Write these numbers in rising order: {list}
Order upwards: {list} | From small to large: {list} | Sort up {list}
In rising order {list} become {answer}. | {list} sorted from small to large: {answer}
sort-down
Please sort these numbers from high to low: {list} | Put {list} in order, the largest first.
| Can you arrange {list} from big to small? | Write these numbers in falling order: {list}
Order downwards: {list} | From large to small: {list} | Sort down {list}
In falling order {list} become {answer}. | {list} sorted from large to small: {answer}
sequence
Which number comes next? {list} | Please continue the row {list} by one number. | What follows in {list}?
| I count {list}. What do I say next?
Next after {list} | {list}, ? | Go on: {list}
The row {list} goes on with {answer}. | After {list} comes {answer}.
sequence-gap
Which number is missing? {list} | Please fill the gap in {list}. | One number of the row {list} is hidden. Tell me which.
| What belongs in place of the gap: {list}?
Gap in {list} | Complete: {list} | {list}; the gap is
In the row {list} the gap is {answer}. | The gap in {list} is filled by {answer}.
story-more
{p} has {a} {things}. {q} gives {p} {b} more. How many {things} does {p} have now?
| There are {a} {things} on the table and {b} in a bag. How many {things} are there?
| {p} finds {a} {things} today and {b} tomorrow. How many {things} are found in all?
{p} had {a} {things} and got {b} from {q}. Number of {things} of {p}? | {a} {things} and {b} {things} together?
{p} had {a} {things} and got {b} more, which made {answer} {things}. | {a} {things} and {b} {things} are {answer} {things}.
story-less
{p} has {a} {things} and gives {b} of them to {q}. How many {things} does {p} keep?
| There are {a} {things} on the table. {p} takes {b} away. How many {things} are left?
| {p} had {a} {things} and lost {b}. How many {things} remain?
{p} had {a} {things} and {q} took {b}. Number of {things} left? | {a} {things} without {b} {things}?
{p} had {a} {things}, gave {q} {b}, and kept {answer} {things}. | {a} {things} without {b} are {answer} {things}.
story-times
There are {a} {boxes} with {b} {things} in each. How many {things} are there?
| {p} fills {a} {boxes}. Each one holds {b} {things}. How many {things} does {p} use?
| {p} buys {b} {things} every day for {a} days. How many {things} is that?
{a} {boxes} of {b} {things} each. Number of {things}? | {b} {things} in each of {a} {boxes}; all {things}?
{a} {boxes} of {b} {things} each hold {answer} {things}.
| {p} filled {a} {boxes} with {b} {things} each, {answer} {things} in all.
story-twice
{p} has {a} {things}. {q} gives {p} {b} more, and then {p} loses {c}. How many {things} does {p} have now?
| There are {a} {things} here and {b} there. {p} takes {c} of them. How many {things} are left?
{p} had {a} {things}, got {b} and lost {c}. Number of {things}? | {a} {things} and {b} {things} without {c}?
{p} had {a} {things}, got {b}, lost {c}, and was left with {answer}. | {a} and {b} {things} without {c} are {answer}.
story-times-more
There are {a} {boxes} with {b} {things} in each, and {c} {things} on the floor. How many {things} are there?
| {p} fills {a} {boxes} with {b} {things} each and has {c} {things} over. How many {things} does {p} have?
{a} {boxes} of {b} {things} each, and {c} more. Number of {things}?
| {b} {things} in each of {a} {boxes} and {c} besides; all {things}?
{a} {boxes} of {b} {things} and {c} more are {answer} {things}.
| {p} had {a} {boxes} of {b} {things} and {c} besides, {answer} in all.
story-three
{p} fills {a} {boxes} with {b} {things} each. {q} brings {c} more, and {e} get lost. How many {things} are there now?
| There are {a} {boxes} with {b} {things} in each and {c} {things} beside them. {p} takes {e}. How many {things} are left?
{a} {boxes} of {b} {things}, {c} more, {e} lost. Number of {things}?
| {b} {things} in each of {a} {boxes} and {c} besides, without {e}?
{a} {boxes} of {b} {things}, {c} more and {e} lost: {answer} {things}.
| {p} had {a} {boxes} of {b} {things}, got {c}, lost {e}, and kept {answer}.
hour-after
It is {a} o'clock. What hour will it be in {b} hours? | The clock says {a}. Which hour does it show {b} hours later?
| Please tell me the hour {b} hours after {a} o'clock.
{b} hours after {a} o'clock | {a} o'clock and {b} hours later: which hour?
{b} hours after {a} o'clock it is {answer} o'clock. | From {a} o'clock, {b} hours later, the clock shows {answer}.
hour-before
It is {a} o'clock. What hour was it {b} hours ago? | The clock says {a}. Which hour did it show {b} hours earlier?
| Please tell me the hour {b} hours before {a} o'clock.
{a} o'clock, {b} hours back | {a} o'clock and {b} hours earlier: which hour?
{b} hours before {a} o'clock it was {answer} o'clock. | From {a} o'clock, {b} hours earlier, the clock showed {answer}.
day-after
Today is {from}. Which day will it be in {n} days? | Please name the day {n} days after {from}.
| What day of the week comes {n} days after a {from}?
{from} and {n} days later | {n} days on from {from}: which day?
{n} days after {from} comes {answer}. | From {from}, {n} days later, it is {answer}.
day-before
Today is {from}. Which day was it {n} days ago? | Please name the day {n} days before {from}.
| What day of the week comes {n} days before a {from}?
{from} and {n} days earlier | {n} days back from {from}: which day?
{n} days before {from} comes {answer}. | From {from}, {n} days earlier, it was {answer}.
month-after
It is {from}. Which month will it be in {n} months? | Please name the month {n} months after {from}.
| What month comes {n} months after {from}?
{from} and {n} months later | {n} months on from {from}: which month?
{n} months after {from} comes {answer}. | From {from}, {n} months later, it is {answer}.
month-before
It is {from}. Which month was it {n} months ago? | Please name the month {n} months before {from}.
| What month comes {n} months before {from}?
{from} and {n} months earlier | {n} months back from {from}: which month?
{n} months before {from} comes {answer}. | From {from}, {n} months earlier, it was {answer}.
day-both
Go {a} days on from {from} and then {b} days back. Which day is it?
| Today is {from}. I leave in {a} days, and I must pack {b} days before that. On which day do I pack?
{from}, {a} days later, {b} days earlier | {a} days on from {from}, then {b} days back: which day?
From {from}, {a} days on and {b} days back, it is {answer}. | {a} days after {from} and {b} days earlier comes {answer}.
convert-down
How many {small} are {a} {big}? | Please convert {a} {big} to {small}. | I have {a} {big}. What is that in {small}?
{a} {big} = ? {small} | {a} {big} in {small}
{a} {big} are {answer} {small}. | {a} {big} = {answer} {small}
convert-up
How many {big} are {total} {small}? | Please convert {total} {small} to {big}. | I have {total} {small}. What is that in {big}?
{total} {small} = ? {big} | {total} {small} in {big}
{total} {small} are {answer} {big}. | {total} {small} = {answer} {big}
convert-mixed
How many {small} are {a} {big} and {b} {small}? | Please convert {a} {big} and {b} {small} to {small}.
| I have {a} {big} and {b} {small}. What is that in {small} alone?
{a} {big} + {b} {small} = ? {small} | {a} {big} and {b} {small} in {small}
{a} {big} and {b} {small} are {answer} {small}. | {a} {big} + {b} {small} = {answer} {small}
convert-split
How many {big} and {small} are {total} {small}? | Please write {total} {small} as {big} and {small}.
| I have {total} {small}. What is that in {big} and {small}?
{total} {small} = ? {big} and ? {small} | {total} {small} in {big} and {small}
{total} {small} are {answer}. | {total} {small} = {answer}
code
What does this program print?\n{code} | Please run this in your head and give me its output:\n{code} | {code}\nWhat is the output?
{code}\n# output: | Program:\n{code}\nOutput:
{code}\n# output: {answer} | Program:\n{code}\nIt prints {answer}.
alphabet-up
Please sort these words by the alphabet: {list} | Put {list} in alphabetical order. | Can you arrange {list} from A to Z?
| Write these words as a dictionary would: {list}
Dictionary order: {list} | A to Z: {list}
In the dictionary {list} stand as {answer}. | {list} sorted by letters: {answer}
alphabet-down
Please sort these words from Z to A: {list} | Put {list} in alphabetical order, but backwards.
| Can you arrange {list} so that the last in the alphabet comes first?
Backward dictionary order: {list} | Z to A: {list}
From Z to A {list} become {answer}. | {list} sorted by letters, last first: {answer}
reverse-list
Please reverse this list: {list} | Write {list} the other way round. | Can you give me {list} from last to first?
| Say these words backwards: {list}
Back to front: {list} | Reverse order of {list}
Back to front, {list} become {answer}. | {list} reversed: {answer}
reverse-letters
Please spell {word} backwards. | Write the letters of {word} from last to first.
| Can you read {word} from right to left, letter by letter?
Letters of {word}, back to front | Backward spelling: {word}
Back to front, {word} is spelled {answer}. | {word} spelled backward: {answer}
count-words
How many words are here? {list} | Please count these words: {list} | Tell me the number of words in this row: {list}
Words in the row {list} | Word count: {list}
The row {list} has a word count of {answer}. | Word count: {list}: {answer}
count-word
How often does {word} occur in {list}? | Please count the word {word} in this list: {list}
| I read {list}. How many times did I read {word}?
Times of {word} in {list} | {word} among {list}: how many?
In {list} there is {word} {answer} times. | {word} among {list}: {answer}
count-letters
How many letters does {word} have? | Please count the letters of {word}. | Tell me how long the word {word} is.
Letters in {word} | Length of {word}
The length of {word} is {answer}. | {word} is written with {answer} letters.
count-letters-of-two
How many letters do {list} have together? | Please count all the letters of {list}.
| Tell me how long the words {list} are in total.
Letters in both {list} | Length of {list} together
The length of {list} together is {answer}. | {list} are written with {answer} letters in all.
count-letter
How many times does the letter {letter} occur in {list}? | Please count every {letter} in these words: {list}
| Tell me how often I write {letter} when I write {list}.
Letter {letter} in {list} | Number of {letter} in the words {list}
The letter {letter} stands {answer} times in {list}. | Number of {letter} in the words {list}: {answer}
edit-upper
Please write this in capitals: {list} | Can you put {list} in upper case? | Shout these words: {list}
Capital letters: {list} | {list} in large letters
In capital letters, {list} is {answer}. | {list} in large letters: {answer}
edit-first
What is the first word here? {list} | Please repeat only the first word: {list} | Which word begins the row {list}?
First of {list} | Start of the row {list}
The row {list} starts with {answer}. | First of {list}: {answer}
edit-last
What is the last word here? {list} | Please repeat only the last word: {list} | Which word ends the row {list}?
Last of {list} | End of the row {list}
The row {list} stops at {answer}. | Last of {list}: {answer}
edit-nth
What is the {nth} word here? {list} | Please repeat only the {nth} word: {list} | Which word stands {nth} in {list}?
The {nth} of {list} | Place {nth} in the row {list}
In the row {list}, the {nth} is {answer}. | The {nth} of {list}: {answer}
edit-upper-nth
What is the {nth} word here, in capitals? {list} | Please write only the {nth} word in upper case: {list}
| Shout the {nth} word of {list}.
The {nth} of {list} in large letters | Place {nth} in capital letters: {list}
The {nth} of {list} in large letters is {answer}. | Place {nth} in capital letters: {list}: {answer}
edit-replace
Please replace {old} with {new} in this text: {list} | Write {list}, but put {new} in place of {old}.
| Change the word {old} to {new}: {list}
{list} with {new} for {old} | {new} instead of {old}: {list}
{list} with {new} for {old} is {answer}. | {new} instead of {old}: {list} becomes {answer}
edit-append
Please add the word {new} at the end: {list} | Write {list} and then {new}. | Put {new} behind the last word of {list}.
{list} followed by {new} | {new} appended to {list}
{list} followed by {new} is {answer}. | {new} appended to {list}: {answer}
edit-remove
Please leave out the {nth} word: {list} | Write {list} without its {nth} word. | Delete the {nth} word of this text: {list}
{list} minus the {nth} | Without the {nth}: {list}
{list} minus the {nth} is {answer}. | Without the {nth}: {list} becomes {answer}
edit-swap
Please swap the first and the last word: {list} | Write {list}, but let its two ends change places.
| Exchange the first word and the last word of {list}.
{list} with the ends exchanged | Ends exchanged: {list}
{list} with the ends exchanged is {answer}. | Ends exchanged: {list} becomes {answer}
edit-replace-reverse
Please replace {old} with {new}, then reverse the words: {list}
| Change {old} to {new} in {list} and write the words from last to first.
{list} with {new} for {old}, back to front | {new} instead of {old}, then back to front: {list}
{list} with {new} for {old}, back to front, is {answer}. | {new} instead of {old}, then back to front: {list} becomes {answer}
edit-remove-upper
Please leave out the {nth} word and write the others in capitals: {list} | Delete the {nth} word of {list} and shout the rest.
{list} minus the {nth} in large letters | Without the {nth}, in capital letters: {list}
{list} minus the {nth} in large letters is {answer}. | Without the {nth}, in capital letters: {list} becomes {answer}
form-separator
Please list {list}, separated by {separator}. | Write {list} as a list with {separator} between the words.
| Give me {list}. Use {separator} and nothing else between them.
{list} joined by {separator} | With {separator}: {list}
{list} joined by {separator}: {answer} | With {separator}, {list} are written {answer}
form-numbered
Please number these words in one line: {list} | Write {list} as a numbered list in one line. | Give each of {list} its number.
{list} with numbers | Numbered: {list}
{list} with numbers: {answer} | Numbered, {list} are written {answer}
form-brackets
Please put each of these words in square brackets: {list} | Write {list}, every word in brackets.
| Answer with brackets around each word: {list}
{list} in brackets | Bracketed: {list}
{list} in brackets: {answer} | Bracketed, {list} are written {answer}
form-quoted
Please put each of these words in quotation marks, with commas between them: {list}
| Write {list} with quotation marks around every word and commas between.
{list} in quotes | Quoted: {list}
{list} in quotes: {answer} | Quoted, {list} are written {answer}
form-first-words
Please answer with exactly {n} words, the first ones of this text: {list} | Give me the first {n} words and no more: {list}
| Cut this text after {n} words: {list}
First {n} of {list} | The row {list} up to {n}
The first {n} of {list} are {answer} | The row {list} up to {n}: {answer}
form-repeat
Please write {word} {n} times, separated by {separator}. | Say {word} {n} times with {separator} in between.
| Repeat {word} exactly {n} times. Put {separator} between.
{n} times {word} joined by {separator} | With {separator}, {n} times: {word}
{n} times {word} joined by {separator}: {answer} | With {separator}, {n} times {word} is {answer}
form-capitals
Please list {list} in capitals, separated by {separator}. | Write {list} in upper case with {separator} between the words.
| Give me {list}, all in capital letters. Separate them by {separator}.
{list} in large letters joined by {separator} | With {separator} and in large letters: {list}
{list} in large letters joined by {separator}: {answer} | With {separator} and in large letters, {list} are {answer}
form-sorted
Please sort {list} and separate them by {separator}. | Write {list} from small to large with {separator} between the numbers.
| Give me {list} in rising order. Separate them by {separator}.
{list} upwards, joined by {separator} | Sorted, with {separator}: {list}
{list} upwards, joined by {separator}: {answer} | Sorted, with {separator}, {list} are {answer}
form-lengths
After each of the words {list} write a colon and its number of letters, and separate them by {separator}.
| Please list {list} with their lengths, as word:length, separated by {separator}.
{list} with lengths, joined by {separator} | Word:length with {separator}: {list}
{list} with lengths, joined by {separator}: {answer} | Word:length with {separator}: {list} give {answer}
passage-home
{passage} In which town is {p} at home? | {passage} Please tell me the town of {p}. | Where does {p} live? {passage}
{passage} The town of {p}: | {passage} Home of {p}?
{passage} So the town of {p} is {answer}.
passage-job
{passage} What does {p} do for a living? | {passage} Please tell me the work of {p}. | Which job does {p} have? {passage}
{passage} The job of {p}: | {passage} Trade of {p}?
{passage} So the job of {p} is {answer}.
passage-pet
{passage} Which animal does {p} have? | {passage} Please tell me what animal belongs to {p}.
| What kind of animal does {p} keep? {passage}
{passage} The animal of {p}: | {passage} Pet of {p}?
{passage} So the animal of {p} is {answer}.
passage-food
{passage} What does {p} like to eat? | {passage} Please tell me the favourite food of {p}.
| Which food does {p} eat most? {passage}
{passage} The food of {p}: | {passage} Meal of {p}?
{passage} So the food of {p} is {answer}.
passage-colour
{passage} Which colour is the coat of {p}? | {passage} Please tell me the colour that {p} wears.
| What colour does {p} wear? {passage}
{passage} The colour of {p}: | {passage} Coat of {p}?
{passage} So the colour of {p} is {answer}.
passage-who-home
{passage} Who lives in {v}? | {passage} Please name the person from {v}. | Whose home is in {v}? {passage}
{passage} In {v}: | {passage} At home in {v}?
{passage} So the one in {v} is {answer}.
passage-who-job
{passage} Who is {a}? | {passage} Please name the person who works as {a}. | Whose job is that of {a}? {passage}
{passage} The {v}: | {passage} Working as {a}?
{passage} So the {v} is {answer}.
passage-who-pet
{passage} Who has {a}? | {passage} Please name the person with {a}. | Whose animal is {a}? {passage}
{passage} With {a}: | {passage} Owner of {a}?
{passage} So the one with {a} is {answer}.
passage-who-food
{passage} Who likes {v}? | {passage} Please name the person who eats {v}. | Whose favourite food is {v}? {passage}
{passage} Fond of {v}: | {passage} Eating {v}?
{passage} So the one fond of {v} is {answer}.
passage-who-colour
{passage} Who wears {v}? | {passage} Please name the person with the {v} coat. | Whose coat is {v}? {passage}
{passage} In {v}: | {passage} Wearing {v}?
{passage} So the one in {v} is {answer}.
passage-friend-home
{passage} In which town does the friend of {p} live? | {passage} Please tell me the town of the friend of {p}.
{passage} The town of the friend of {p}: | {passage} Home of the friend of {p}?
{passage} So the town of the friend of {p} is {answer}.
passage-friend-job
{passage} What does the friend of {p} do for a living? | {passage} Please tell me the work of the friend of {p}.
{passage} The job of the friend of {p}: | {passage} Trade of the friend of {p}?
{passage} So the job of the friend of {p} is {answer}.
passage-friend-pet
{passage} Which animal does the friend of {p} have? | {passage} Please tell me what animal the friend of {p} keeps.
{passage} The animal of the friend of {p}: | {passage} Pet of the friend of {p}?
{passage} So the animal of the friend of {p} is {answer}.
passage-friend-food
{passage} What does the friend of {p} like to eat? | {passage} Please tell me the favourite food of the friend of {p}.
{passage} The food of the friend of {p}: | {passage} Meal of the friend of {p}?
{passage} So the food of the friend of {p} is {answer}.
passage-friend-colour
{passage} Which colour does the friend of {p} wear? | {passage} Please tell me the colour of the coat of the friend of {p}.
{passage} The colour of the friend of {p}: | {passage} Coat of the friend of {p}?
{passage} So the colour of the friend of {p} is {answer}.
"""


def _parse(text: str) -> dict[str, Wording]:
    # a line that begins with a bar continues the one before
    lines = text.strip().replace("\n| ", " | ").split("\n")
    rows = []
    for line in lines:
        rows.append(tuple(part.strip().replace("\\n", "\n") for part in line.split(" | ")))
    return {rows[i][0]: Wording(*rows[i + 1 : i + 4]) for i in range(0, len(rows), 4)}


WORDINGS: Final = _parse(_TEXT)
