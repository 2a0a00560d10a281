/// What prompts are cut from. Real sentences: a prompt of repeated tokens chooses few experts, and so
/// makes a mixture look smaller than it is.
let benchText = """
    A mixture of experts is a neural network that keeps many small networks beside each other and asks \
    only a few of them about each word. The part that decides whom to ask is called the router. It looks at \
    the state of the word, gives every expert a score between nought and one, and hands the word to the \
    four with the highest. The answers come back, each multiplied by its score, and are added up. One more \
    expert, wider than the others, is asked about every word; it learns what all words have in common, so \
    that the others need not.

    Why would anybody build a model like that for a telephone? Because a telephone has two kinds of \
    poverty. It has little memory, and it moves even that little memory slowly. A dense model of a billion \
    weights has to carry all of them from memory to the processor for every single word that it writes. A \
    mixture of the same size carries a quarter of them. The rest lies still, and costs nothing but the room \
    that it takes on the disk.

    Consider a kitchen. Twelve cooks stand around a table, and one of them reads the orders aloud. When \
    somebody wants fish, the two cooks who know fish step forward; when somebody wants bread, the baker \
    does. Nobody is idle for long, because the person who reads the orders has learned to spread them. If he \
    sent everything to the baker, the others would forget how to cook, and the bread would be late. During \
    training a small correction is added to the score of each expert: a little more for the one who had \
    too few words in the last step, a little less for the one who had too many. It changes who is asked, but \
    not how loud the answer is.

    Numbers are stored in four bits. That is enough to count from minus eight to seven. Thirty-two weights \
    that follow each other share a scale, a sixteen-bit number that says how large one step is. To use a \
    weight, the processor takes the four bits, makes a signed number of them and multiplies by the scale. \
    Done one at a time this would be slow; done for sixty-four weights with a single instruction it is \
    faster than reading sixteen-bit weights would be, since memory, not arithmetic, sets the pace.

    def median(values):
        ordered = sorted(values)
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return (ordered[middle - 1] + ordered[middle]) / 2

    The function above sorts a list and takes the number in its middle; where there are two of them it takes \
    what lies halfway. Measurements of speed are given this way, because one bad round, in which the system \
    was busy with something else, would pull a mean far from the truth, and leaves a median where it was.

    On Monday, 14 March, the ferry left at 07:45 with 212 passengers, 38 cars and a bus. The sea was calm \
    until the lighthouse; then the wind turned north-west, force six, and the captain reduced speed to \
    eleven knots. "We will be twenty minutes late," he said, "and nobody will be ill." He was right about the \
    first. In the harbour of Sandvik three people asked for a refund, two wanted to know the way to the \
    museum, and a boy of nine asked whether the engine could be seen. It could.

    Water boils at 100 degrees at sea level and at about 71 on the highest mountain. The reason is the weight \
    of the air: less of it presses on the surface, and so the bubbles form sooner. Climbers who want hard \
    eggs need patience, or a pot with a lid that holds the steam. The same rule, turned around, cooks beans \
    in half the time.

    Liebe Anna, danke für deinen Brief vom zwölften. Hier regnet es seit Tagen, aber der Garten freut sich. \
    Die Äpfel sind noch klein, die Kirschen haben die Vögel geholt. Am Sonntag kommen Jürgen und Zoë; \
    vielleicht backe ich einen Kuchen. Cher ami, le train part à huit heures et quart, voie deux. N'oublie \
    pas ton passeport, ni le café. El lunes siguiente empezó la feria, y con ella la música.

    Question: A box holds seven red, five blue and four green marbles. Two are drawn without looking. How \
    likely is it that both are blue? Answer: The first is blue in five cases of sixteen, the second in four \
    of the fifteen that are left. Five times four is twenty, sixteen times fifteen is two hundred and forty, \
    and twenty in two hundred and forty is one in twelve.

    SELECT city, COUNT(*) AS orders, SUM(total) FROM sales WHERE year = 2024 GROUP BY city HAVING \
    COUNT(*) > 10 ORDER BY orders DESC; asks a table of sales for the cities with more than ten orders, the \
    busiest first. The database reads the year of each row, keeps those that match, and counts. With an \
    index on the year it need not look at the others at all, which is, once again, the idea of this text: the \
    cheapest work is the work that nobody has to do.
    """
